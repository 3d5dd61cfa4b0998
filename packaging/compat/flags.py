"""What flags of `vllm serve` make of this family on GPUs, asked of vLLM without one.

    python packaging/compat/flags.py [--gpu H100] [--only TEXT]   print the table
    python packaging/compat/flags.py write PRINTED docs/gpu.md    put what was printed into it

Each row is a command line: the engine configuration is made as the server makes it, and then the
model is constructed and its weights are loaded, on a platform that says it is that GPU
(fake_hopper.py). A row that ends otherwise than `EXPECTED` says is an error. Run by hopper.sh.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fake_hopper

GPU = "H100"
BEGIN, END = "<!-- flags: written by packaging/compat/flags.py -->", "<!-- end of flags -->"


@dataclass(frozen=True)
class Row:
    """A command line, and how it has to end.

    Args:
        flags: as they are written on the command line.
        refused: part of the sentence that refuses it, or None where it must work.
        options: the same flags as arguments of the engine.
        environment: variables.
        builds: whether the model can be constructed in one process.
        loads: whether its weights can be loaded without a GPU.
    """

    flags: str
    refused: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    builds: bool = True
    loads: bool = True


def graphs(mode: str) -> dict[str, Any]:
    return {"compilation_config": {"cudagraph_mode": mode}}


ROWS = (
    Row("(none)"),
    Row("--enforce-eager", options={"enforce_eager": True}),
    Row("--dtype float32", options={"dtype": "float32"}),
    Row("--max-num-seqs 256", options={"max_num_seqs": 256}),
    Row("--max-num-batched-tokens 512", options={"max_num_batched_tokens": 512}),
    Row("--max-num-batched-tokens 2048", options={"max_num_batched_tokens": 2048}),
    Row("-cc.mode=3", options={"compilation_config": {"mode": 3}}),
    Row("-cc.cudagraph_mode=NONE", options=graphs("NONE")),
    Row("-cc.cudagraph_mode=PIECEWISE", options=graphs("PIECEWISE")),
    Row("-cc.cudagraph_mode=FULL", "replays whole forwards", graphs("FULL")),
    Row(
        "VLLM_USE_BREAKABLE_CUDAGRAPH=1",
        "replays whole forwards",
        {},
        {"VLLM_USE_BREAKABLE_CUDAGRAPH": "1"},
    ),
    Row("VLLM_BATCH_INVARIANT=1", environment={"VLLM_BATCH_INVARIANT": "1"}),
    Row("--attention-backend FLASH_ATTN", options={"attention_backend": "FLASH_ATTN"}),
    Row("--attention-backend TRITON_ATTN", options={"attention_backend": "TRITON_ATTN"}),
    Row("--attention-backend FLEX_ATTENTION", options={"attention_backend": "FLEX_ATTENTION"}),
    Row(
        "--attention-backend FLASHINFER",
        "cannot attend in both directions",
        {"attention_backend": "FLASHINFER"},
    ),
    Row("--quantization fp8", options={"quantization": "fp8"}, loads=False),
    Row("--kv-cache-dtype fp8", options={"kv_cache_dtype": "fp8"}),
    Row("--tensor-parallel-size 2", options={"tensor_parallel_size": 2}, builds=False),
    Row(
        "--tensor-parallel-size 8",
        # The tiny checkpoint has two heads, which cannot be shared by eight.
        options={"tensor_parallel_size": 8, "hf_overrides": {"n_heads": 8, "n_kv_heads": 8}},
        builds=False,
    ),
    Row("--data-parallel-size 2", options={"data_parallel_size": 2}, builds=False),
    Row(
        "--pipeline-parallel-size 2",
        "pipeline parallelism is not implemented",
        {"pipeline_parallel_size": 2},
    ),
    Row("--enable-lora", "LoRA adapters are not implemented", {"enable_lora": True}),
    Row(
        "--speculative-config (ngram)",
        "speculative decoding has no meaning",
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
    ),
)


@contextmanager
def variables(values: dict[str, str]) -> Iterator[None]:
    """Environment variables for a while."""
    import vllm.envs

    os.environ.update(values)
    vllm.envs.disable_envs_cache()
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)
        vllm.envs.disable_envs_cache()


def configure(folder: Path, options: dict[str, Any]) -> Any:
    """The engine's configuration, as `vllm serve` makes it."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    arguments = AsyncEngineArgs(model=str(folder), **options)
    return arguments.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)


def construct(config: Any, loads: bool) -> Any:
    """The model of a configuration, with its weights if it `loads` them."""
    import torch
    from safetensors.torch import load_file
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    with set_current_vllm_config(config):
        start_distributed()
        with set_default_torch_dtype(config.model_config.dtype), torch.device("cpu"):
            model = initialize_model(vllm_config=config)
        if not loads:
            return model
        tensors = {}
        for path in sorted(Path(config.model_config.model).glob("*.safetensors")):
            tensors |= load_file(path)
        model.load_weights(tensors.items())
    return model


def start_distributed() -> None:
    """One rank over gloo; once in a process."""
    from vllm.distributed.parallel_state import (
        init_distributed_environment,
        initialize_model_parallel,
        model_parallel_is_initialized,
    )

    if not model_parallel_is_initialized():
        rendezvous = f"file://{tempfile.mkdtemp()}/rendezvous"
        init_distributed_environment(1, 0, rendezvous, 0, "gloo")
        initialize_model_parallel(1, 1)


def one_line(error: BaseException) -> str:
    """An error's own sentence, without pydantic's frame."""
    text = " ".join(str(error).split())
    return text.partition("Value error, ")[2].partition(" [type=")[0] or text


def try_row(row: Row, folder: Path, gpu: str) -> tuple[str, str | None]:
    """A row of the table, and what is wrong with how it ended."""
    name = row.flags.replace("|", "\\|")
    try:
        with variables(row.environment):
            config = configure(folder, dict(row.options))
            backend = "(several ranks)"
            if row.builds:
                attention = construct(config, row.loads).transformer.blocks[0].attention.attn
                backend = attention.attn_backend.get_name()
    except (ValueError, RuntimeError, NotImplementedError, AssertionError, TypeError) as error:
        text = one_line(error)
        is_right = row.refused is not None and row.refused in text
        said = text.removeprefix("this model cannot be served so: ")
        cells = (gpu, f"`{name}`", f"refused: {said[:160]}", "", "", "", "")
        wrong = None if is_right else f"{row.flags}: {type(error).__name__}: {text[:300]}"
        return f"| {' | '.join(cells)} |", wrong
    scheduler, compilation = config.scheduler_config, config.compilation_config
    cells = (
        gpu,
        f"`{name}`",
        backend,
        str(config.model_config.dtype).removeprefix("torch."),
        str(scheduler.max_num_seqs),
        str(scheduler.max_num_batched_tokens),
        f"{compilation.mode.name}, {compilation.cudagraph_mode.name}",
    )
    wrong = None if row.refused is None else f"{row.flags} was accepted"
    with variables(row.environment):
        breakable = os.environ.get("VLLM_USE_BREAKABLE_CUDAGRAPH", "0") not in ("", "0")
    if breakable or compilation.cudagraph_mode.has_full_cudagraphs():
        wrong = wrong or f"{row.flags} would replay whole forwards, which gives wrong tokens"
    return f"| {' | '.join(cells)} |", wrong


HEAD = (
    "| GPU | flags | attention | dtype | requests | rows a step | compilation, graphs |",
    "|---|---|---|---|---|---|---|",
)


def write_checkpoint(folder: Path) -> Path:
    """A tiny model of the omnimodal family that takes the published 4,096 rows."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    from helpers.omni_checkpoint import write_omni_checkpoint

    return write_omni_checkpoint(folder)


def write(printed: Path, page: Path) -> None:
    """Put the rows that were printed between the page's marks."""
    rows = [line for line in printed.read_text().splitlines() if line.startswith("| ")]
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text("\n".join([before + BEGIN, "", *HEAD, *rows, "", END + after]))


def main() -> int:
    """Print the table; 1 if a row did not end as it has to."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["write"]:
        write(Path(arguments[1]), Path(arguments[2]))
        return 0
    only = arguments[arguments.index("--only") + 1] if "--only" in arguments else ""
    gpu = arguments[arguments.index("--gpu") + 1] if "--gpu" in arguments else GPU
    fake_hopper.pretend(gpu)
    started, wrong, lines = time.time(), [], []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder) / "tiny")
        for row in ROWS if gpu == GPU else ROWS[:1]:
            if only in row.flags:
                line, problem = try_row(row, checkpoint, gpu)
                print(line, flush=True)
                lines.append(line)
                wrong += [problem] if problem else []
    print("\n".join(f"WRONG: {line}" for line in wrong) or "every row ended as it has to")
    print(f"{len(lines)} rows on a pretended {gpu} in {time.time() - started:.0f} s")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
