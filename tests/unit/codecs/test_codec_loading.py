import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from vllm_dynin.processors.codecs.convert import convert, main
from vllm_dynin.processors.codecs.loading import (
    float32_default,
    fold_weight_norm,
    load_exact,
    read_config,
    read_safetensors,
    resolve_checkpoint,
    save_checkpoint,
)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("table", torch.arange(4.0))


def state(module=None):
    return {k: v.clone() for k, v in (module or Small()).state_dict().items()}


def test_load_exact_fills_every_parameter():
    source, target = Small(), Small()
    load_exact(target, state(source), optional=["table"])
    assert torch.equal(source.linear.weight, target.linear.weight)
    assert torch.equal(source.linear.bias, target.linear.bias)


def test_load_exact_casts_to_the_dtype_of_the_module():
    tensors = {k: v.to(torch.bfloat16) for k, v in state().items()}
    target = Small()
    load_exact(target, tensors)
    assert target.linear.weight.dtype == torch.float32
    assert torch.equal(target.linear.weight, tensors["linear.weight"].float())


def test_all_problems_are_named_at_once_and_nothing_is_loaded():
    tensors = state()
    del tensors["linear.bias"]
    tensors["linear.weight"] = torch.zeros(3, 2)
    tensors["extra"] = torch.zeros(1)
    target = Small()
    before = state(target)
    with pytest.raises(ValueError) as caught:
        load_exact(target, tensors)
    message = str(caught.value)
    assert "missing: 1 (linear.bias)" in message
    assert "unexpected: 1 (extra)" in message
    assert "linear.weight (3, 2) instead of (2, 3)" in message
    assert all(torch.equal(before[k], v) for k, v in target.state_dict().items())


def test_a_long_list_of_problems_is_cut():
    with pytest.raises(ValueError, match=r"unexpected: 40 \(.*and 28 more"):
        load_exact(Small(), state() | {f"x{i}": torch.zeros(1) for i in range(40)})


def test_dropped_and_optional_keys():
    tensors = state() | {"head.weight": torch.zeros(2), "ema.a": torch.zeros(1)}
    del tensors["table"]
    load_exact(Small(), tensors, dropped=[r"head\.", "ema"], optional=["table"])
    with pytest.raises(ValueError, match=r"missing: 1 \(table\)"):
        load_exact(Small(), tensors, dropped=[r"head\.", "ema"])
    with pytest.raises(ValueError, match=r"unexpected: 1 \(head.weight\)"):
        load_exact(Small(), tensors, dropped=["ema"], optional=["table"])
    # a pattern is anchored at the start of the key
    with pytest.raises(ValueError, match=r"head\.weight"):
        load_exact(Small(), tensors, dropped=["weight", "ema"], optional=["table"])


def test_an_optional_buffer_must_agree_where_it_is_given():
    with pytest.raises(ValueError, match=r"computed value: 1 \(table\)"):
        load_exact(Small(), state() | {"table": torch.ones(4)}, optional=["table"])
    with pytest.raises(ValueError, match="of another shape"):
        load_exact(Small(), state() | {"table": torch.arange(5.0)}, optional=["table"])


LAYERS = {
    "conv, dim 0": (lambda: nn.Conv1d(6, 4, 5), 0),
    "conv, dim 2": (lambda: nn.Conv1d(6, 4, 5), 2),
    "grouped, dim 2": (lambda: nn.Conv1d(6, 4, 5, groups=2), 2),
    "transposed, dim 0": (lambda: nn.ConvTranspose1d(6, 4, 5), 0),
    "one output, dim 0": (lambda: nn.Conv1d(6, 1, 5), 0),
    "linear": (lambda: nn.Linear(6, 4), 0),
}


@pytest.mark.parametrize("spelling", ["parametrizations", "g and v", "plain"])
@pytest.mark.parametrize("layer", LAYERS)
def test_weight_norm_is_folded_from_all_spellings(layer, spelling):
    make, dim = LAYERS[layer]
    torch.manual_seed(0)
    normed = weight_norm(make(), dim=dim)
    with torch.no_grad():  # or g would still be the norm of v, and forgetting g would pass
        normed.parametrizations.weight.original0.mul_(1.7).add_(0.3)
    old = {"original0": "weight_g", "original1": "weight_v"}
    tensors = {}
    for key, value in normed.state_dict().items():
        if spelling == "g and v" and key.startswith("parametrizations"):
            key = old[key.rsplit(".", 1)[1]]
        tensors[f"net.{key}"] = value
    if spelling == "plain":
        tensors = {"net.weight": normed.weight.detach(), "net.bias": normed.bias.detach()}
    target = nn.ModuleDict({"net": make()})
    load_exact(target, tensors)
    assert torch.allclose(target["net"].weight, normed.weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a.weight_g": torch.ones(2, 1)}, "a.weight_g has no .weight_v"),
        ({"a.weight_v": torch.ones(2, 3)}, "a.weight_v has no .weight_g"),
        (
            {"a.parametrizations.weight.original1": torch.ones(2, 3)},
            "has no .parametrizations.weight.original0",
        ),
        ({"a.weight_g": torch.ones(3, 1), "a.weight_v": torch.ones(2, 3)}, "no magnitude"),
        ({"a.weight_g": torch.ones(2), "a.weight_v": torch.ones(2, 3)}, "no magnitude"),
        (
            {
                "a.weight_g": torch.ones(2, 1),
                "a.weight_v": torch.ones(2, 3),
                "a.weight": torch.ones(2, 3),
            },
            "both a plain and",
        ),
    ],
)
def test_broken_weight_norm_is_refused(tensors, message):
    with pytest.raises(ValueError, match=message):
        fold_weight_norm(tensors)


def test_float32_default_restores_even_after_an_error():
    torch.set_default_dtype(torch.bfloat16)
    try:
        with pytest.raises(RuntimeError), float32_default():
            assert nn.Linear(2, 2).weight.dtype == torch.float32
            raise RuntimeError
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)


def test_save_and_read_back(tmp_path):
    module = Small()
    save_checkpoint(tmp_path / "new", {"a": 1}, module.state_dict())
    assert read_config(tmp_path / "new") == {"a": 1}
    read = read_safetensors(tmp_path / "new")
    assert all(torch.equal(v, read[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "pytorch_model.safetensors",
        "diffusion_pytorch_model.safetensors",
        "anything.safetensors",
    ],
)
def test_weight_file_names(tmp_path, name):
    save_file({"a": torch.ones(2)}, tmp_path / name)
    assert torch.equal(read_safetensors(tmp_path)["a"], torch.ones(2))


def _shard(directory, weight_map):
    save_file({"a": torch.ones(2)}, directory / "x-1.safetensors")
    save_file({"b": torch.zeros(3)}, directory / "x-2.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_sharded_checkpoint(tmp_path):
    _shard(tmp_path, {"a": "x-1.safetensors", "b": "x-2.safetensors"})
    assert {k: tuple(v.shape) for k, v in read_safetensors(tmp_path).items()} == {
        "a": (2,),
        "b": (3,),
    }


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "x-1.safetensors", "b": "x-3.safetensors"}, "cannot be read"),
        ({"a": "x-1.safetensors", "b": "../x-2.safetensors"}, "must lie beside"),
        ({"a": "x-1.safetensors"}, None),
        ({"a": "x-1.safetensors", "b": "x-2.safetensors", "c": "x-2.safetensors"}, r"1 \(c\)"),
        ([], "no usable 'weight_map'"),
    ],
)
def test_damaged_shards(tmp_path, weight_map, message):
    _shard(tmp_path, weight_map)
    if message is None:  # an unlisted file is not read
        assert list(read_safetensors(tmp_path)) == ["a"]
    else:
        with pytest.raises(ValueError, match=message):
            read_safetensors(tmp_path)


def test_unreadable_checkpoints(tmp_path):
    with pytest.raises(ValueError, match=r"no \*\.safetensors file"):
        read_safetensors(tmp_path)
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"convert pytorch_model\.bin once"):
        read_safetensors(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        read_safetensors(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="JSON object"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_config(tmp_path)


def test_two_unnamed_files_are_ambiguous(tmp_path):
    for name in ("a", "b"):
        save_file({"a": torch.ones(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match="rename the wanted one"):
        read_safetensors(tmp_path)


@pytest.mark.parametrize("name", ["missing", "../x/y/z", "https://example.org/a", "a b/c", ""])
def test_neither_directory_nor_repository(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "":  # Path("") is the current directory, which exists
        assert resolve_checkpoint(name).resolve() == tmp_path
    else:
        with pytest.raises(ValueError, match="neither an existing directory nor"):
            resolve_checkpoint(name)


def test_repository_offline_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="could not be fetched from the Hub"):
        resolve_checkpoint("nobody/nothing")


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_converter(tmp_path, capsys, key):
    shared = torch.arange(12.0)
    tensors = {"a": shared, "b": shared[:4], "c": torch.ones(3, 4).T, "step": 7}
    source = tmp_path / "old" / "pytorch_model.bin"
    source.parent.mkdir()
    (source.parent / "config.json").write_text('{"x": 1}')
    torch.save(tensors if key is None else {key: tensors, "epoch": 3}, source)
    out = tmp_path / "new"
    main([str(source), str(out)])
    said = capsys.readouterr().out
    read = load_file(out / "model.safetensors")
    assert set(read) == {"a", "b", "c"}
    assert torch.equal(read["b"], shared[:4]) and read["c"].shape == (4, 3)
    assert read_config(out) == {"x": 1}
    for part in ("3 tensors, 28 numbers", "left out 'step'", "shared memory", "copied config.json"):
        assert part in said
    with pytest.raises(ValueError, match="exists already"):
        convert(source, out)


def test_converter_is_a_command(tmp_path):
    command = [
        sys.executable,
        "-m",
        "vllm_dynin.processors.codecs.convert",
        tmp_path / "a",
        tmp_path,
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2 and "cannot be read as plain tensors" in run.stderr


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_converter_runs_no_code(tmp_path, capsys):
    torch.save({"a": torch.ones(1), "b": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="cannot be read as plain tensors"):
        convert(tmp_path / "evil.pt", tmp_path / "out")
    assert "code ran" not in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_converter_refuses_what_holds_no_tensors(tmp_path):
    (tmp_path / "text.bin").write_text("hello")
    with pytest.raises(ValueError, match="cannot be read as plain tensors"):
        convert(tmp_path / "text.bin", tmp_path / "out")
    torch.save({"epoch": 1}, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match="holds no state dict"):
        convert(tmp_path / "empty.pt", tmp_path / "out")
    with pytest.raises(ValueError, match="no entry 'g'"):
        convert(tmp_path / "empty.pt", tmp_path / "out", key="g")
