"""The launcher's files: what accelerate reads in them and puts into the environment."""

from argparse import Namespace
from importlib.resources import files

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
)

FOLDER = files("vllm_dynin.training_ext") / "accelerate_configs"
NAMES = sorted(path.name for path in FOLDER.iterdir() if path.name.endswith(".yaml"))


def launched(name: str) -> Namespace:
    """Arguments of `accelerate launch` with a file, as the launcher itself completes them."""
    given = ["--config_file", str(FOLDER / name), "--main_process_ip", "10.0.0.1"]
    parsed = launch_command_parser().parse_args([*given, "-m", "vllm_dynin.entrypoints.cli"])
    arguments, config, _ = _validate_launch_command(parsed)
    arguments.deepspeed_fields_from_accelerate_config = ",".join(config.deepspeed_config)
    return arguments


def test_there_is_a_file_for_one_and_for_eight_machines():
    kinds = ("gpus", "zero2", "zero3")
    assert sorted(f"{machines}x8_{kind}.yaml" for machines in (1, 8) for kind in kinds) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_reads_it(name):
    config = load_config_from_file(str(FOLDER / name))
    machines, kind = int(name[0]), name.removesuffix(".yaml")[4:]
    assert (config.num_machines, config.num_processes) == (machines, 8 * machines)
    assert config.use_cpu is False
    if kind == "gpus":
        assert config.distributed_type == DistributedType.MULTI_GPU
        assert config.mixed_precision == "no"
    else:
        assert config.distributed_type == DistributedType.DEEPSPEED
        assert config.deepspeed_config["zero_stage"] == int(kind[-1])
        assert config.mixed_precision == "bf16"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_the_recipe_decides_gets_into_the_environment(name):
    arguments = launched(name)
    assert arguments.use_deepspeed == ("zero" in name)
    if "zero" in name:
        command, environment = prepare_deepspeed_cmd_env(arguments)
        assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == name[-6]
        assert not command  # the launcher starts the processes itself, not over ssh
    else:
        environment = prepare_multi_gpu_env(arguments)
        assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    decided = ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "ACCELERATE_GRADIENT_CLIPPING")
    assert not [key for key in decided if key in environment]
    assert environment.get("ACCELERATE_USE_FSDP", "false") == "false"
