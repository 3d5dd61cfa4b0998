"""`vllm-dynin fetch` against a hub on this machine: one folder, checked, and nothing run."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial

import huggingface_hub
import pytest
import torch
from helpers.hub import COMMIT, Hub, serve_hub
from safetensors.torch import load_file

from vllm_dynin import checkpoint
from vllm_dynin.entrypoints.commands.fetch import main
from vllm_dynin.entrypoints.stand_in import write_stand_in
from vllm_dynin.fetch import wanted_files
from vllm_dynin.processors.codecs.image import ImageCodec
from vllm_dynin.processors.codecs.speech import SpeechCodec
from vllm_dynin.processors.media import CodecFolders

MODEL, IMAGE, SPEECH = "lab/Dynin-Omni", "lab/magvit", "lab/speech"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A checkpoint and its two codecs as three repositories, the image codec as a pickle."""
    root = tmp_path_factory.mktemp("hub")
    model = write_stand_in(root / "model")
    image, speech = root / "image", root / "speech"
    shutil.move(model / "image_codec", image)
    shutil.move(model / "speech_codec", speech)
    torch.save(load_file(image / "model.safetensors"), image / "pytorch_model.bin")
    (image / "model.safetensors").unlink()
    config = json.loads((model / "config.json").read_text())
    config |= {"image_codec": IMAGE, "speech_codec": SPEECH}
    (model / "config.json").write_text(json.dumps(config))
    (model / "modeling_dynin.py").write_text("raise SystemExit('this was run')\n")
    (model / "training_args.bin").write_bytes(b"no weights")
    return {MODEL: model, IMAGE: image, SPEECH: speech}


@pytest.fixture
def hub(published):
    return Hub(dict(published))


@dataclass
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def fetch(hub, tmp_path, monkeypatch, capsys):
    """The command in this process, with this hub as the hub."""

    def run(*arguments):
        with serve_hub(hub) as address, monkeypatch.context() as patch:
            patch.setattr(huggingface_hub, "HfApi", partial(huggingface_hub.HfApi, address))
            patch.chdir(tmp_path)
            status = main([str(argument) for argument in arguments])
        return Done(status, *capsys.readouterr())

    return run


def in_a_process(hub, *arguments, cwd):
    with serve_hub(hub) as address:
        return subprocess.run(
            [sys.executable, "-m", "vllm_dynin.entrypoints.cli", "fetch", *arguments],
            cwd=cwd,
            env=os.environ
            | {"HF_ENDPOINT": address, "HF_HOME": str(cwd / "hf"), "HF_HUB_DISABLE_XET": "1"}
            | {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )


def test_one_command_from_the_hub_to_a_folder(hub, published, tmp_path):
    done = in_a_process(hub, MODEL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "Dynin-Omni"
    assert f"at commit {COMMIT}" in done.stdout
    assert "state dict at the top level" in done.stdout
    assert done.stdout.endswith("vllm-dynin serve Dynin-Omni\n")
    assert not [path for path in hub.asked if path.endswith((".py", "training_args.bin"))]
    assert not [path for path in folder.rglob("*") if path.suffix in (".py", ".bin", ".cache")]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    config = checkpoint.load_config(folder)
    checkpoint.check_tensors(checkpoint.tensor_shapes(folder), config)
    folders = CodecFolders.find(str(folder), config)
    assert folders == CodecFolders(str(folder / "image_codec"), str(folder / "speech_codec"))
    ImageCodec.from_pretrained(folders.image)
    SpeechCodec.from_pretrained(folders.speech)
    tensors = dict(checkpoint.iter_tensors(folder))
    for name, tensor in checkpoint.iter_tensors(published[MODEL]):
        assert torch.equal(tensors[name], tensor)


def test_a_model_that_is_only_pickles(fetch, hub, published, tmp_path):
    """Two shards with an index; they are read as tensors and written as safetensors."""
    model = tmp_path / "pickled"
    shutil.copytree(published[MODEL], model)
    tensors = dict(checkpoint.iter_tensors(model))
    names = list(tensors)
    for number, part in enumerate((names[::2], names[1::2])):
        torch.save({n: tensors[n] for n in part}, model / f"pytorch_model-{number}.bin")
    (model / "pytorch_model.bin.index.json").write_text("{}")
    (model / "model.safetensors").unlink()
    hub.repositories[MODEL] = model
    done = fetch(MODEL, "out")
    assert done.returncode == 0, done.stderr
    assert "converted 2 files to safetensors" in done.stdout
    found = dict(checkpoint.iter_tensors(tmp_path / "out"))
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert not [*(tmp_path / "out").glob("*.bin*")]


def test_a_pickle_with_code_is_not_run(fetch, hub, published, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/was-run",)

    image = tmp_path / "image"
    shutil.copytree(published[IMAGE], image)
    (image / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Evil()}))
    hub.repositories[IMAGE] = image
    done = fetch(MODEL, "out")
    assert done.returncode == 1
    assert "cannot be read as plain tensors" in done.stderr
    assert not (tmp_path / "was-run").exists() and not (tmp_path / "out").exists()


def test_damage_on_the_way_is_found_and_the_next_call_goes_on(fetch, hub, tmp_path):
    hub.damaged = {"model.safetensors"}
    done = fetch(MODEL, "out")
    assert done.returncode == 1
    assert "model.safetensors of lab/Dynin-Omni has the hash" in done.stderr
    assert not (tmp_path / "out").exists()
    hub.damaged = set()
    hub.asked.clear()
    done = fetch(MODEL, "out")
    assert done.returncode == 0, done.stderr
    assert f"{MODEL}/config.json" not in hub.asked  # it was there already


def test_tensors_of_another_model_are_refused(fetch, hub, published, tmp_path):
    model = tmp_path / "other"
    shutil.copytree(published[MODEL], model)
    config = json.loads((model / "config.json").read_text())
    config["n_layers"] += 1
    (model / "config.json").write_text(json.dumps(config))
    hub.repositories[MODEL] = model
    done = fetch(MODEL, "out")
    assert done.returncode == 1
    assert "do not fit its config.json" in done.stderr and not (tmp_path / "out").exists()


def test_folders_in_place_of_repositories(fetch, published, tmp_path):
    parts = ["--image-codec", published[IMAGE], "--speech-codec", published[SPEECH]]
    done = fetch(published[MODEL], "out", *parts)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "image_codec" / "model.safetensors").is_file()
    assert (published[IMAGE] / "pytorch_model.bin").is_file()  # what was given is left alone


def test_what_cannot_be_had_is_one_line(fetch, tmp_path):
    done = fetch("lab/nothing")
    assert done.returncode == 1
    assert done.stderr.startswith("vllm-dynin fetch: 'lab/nothing' is no folder and could not")
    (tmp_path / "there").mkdir()
    done = fetch("lab/nothing", "there")
    assert "exists; remove it, or name another folder" in done.stderr


def test_which_files_are_taken():
    names = [
        "config.json", "tokenizer.json", "chat_template.jinja", "model.py", "README.md",
        "model-1.safetensors", "pytorch_model.bin", "speech_codec/config.json",
        "speech_codec/s2u.ckpt", "optimizer.bin", ".gitattributes", "x/.hidden/model.json",
        "run.sh", "/etc/config.json",
    ]  # fmt: skip
    assert wanted_files(names) == [
        "README.md", "chat_template.jinja", "config.json", "model-1.safetensors",
        "speech_codec/config.json", "speech_codec/s2u.ckpt", "tokenizer.json",
    ]  # fmt: skip
