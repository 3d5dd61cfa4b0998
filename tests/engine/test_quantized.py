"""Quantised checkpoints: every format loads, its lists are heard, and what can run here answers."""

import json

import pytest
import torch
from helpers.engines import environment, start_llm
from helpers.quantized import HEAD, write_quantized
from vllm.config import set_current_vllm_config
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.utils.torch_utils import set_default_torch_dtype

import vllm_dynin as dynin
from vllm_dynin import checkpoint
from vllm_dynin.entrypoints.demo.text_part import CHECKPOINT
from vllm_dynin.quantization import SCHEMES, quantize_checkpoint, quantize_matrix
from vllm_dynin.training_ext.tiny_text.tasks import held_out_examples

BLOCK = "model.transformer.blocks.0"


def right_answers(folder, **options):
    """Of 30 held-out prompts of the shipped text model."""
    examples = list(held_out_examples(seed=1, per_kind=10))
    requests = [dynin.Chat(one.messages, max_tokens=32) for one in examples]
    with start_llm(folder, **options) as llm:
        answers = dynin.generate(llm, requests, use_tqdm=False)
    return sum(answer.text == one.answer for answer, one in zip(answers, examples, strict=True))


@pytest.fixture(scope="module")
def plain():
    return right_answers(CHECKPOINT, dtype="bfloat16")


@pytest.mark.parametrize("method", ["int8", "gptq", "awq"])
def test_what_the_cpu_has_kernels_for_answers(tmp_path, plain, method):
    """As many right answers as without, but for one in ten."""
    folder = tmp_path / method
    if method == "int8":
        quantize_checkpoint(CHECKPOINT, folder, SCHEMES["int8"])
    else:
        write_quantized(CHECKPOINT, folder, method)
    assert right_answers(folder, dtype="bfloat16") >= plain - 3


def loaded(folder, **options):
    """The model as vLLM builds and loads it, before anything is repacked for kernels of a GPU."""
    with environment():
        config = EngineArgs(str(folder), dtype="bfloat16", **options).create_engine_config()
        with (
            set_current_vllm_config(config),
            set_default_torch_dtype(torch.bfloat16),
        ):
            model = initialize_model(vllm_config=config)
            get_model_loader(config.load_config).load_weights(model, config.model_config)
    return model


def stored(folder):
    return dict(checkpoint.iter_tensors(folder))


@pytest.mark.usefixtures("llm")  # which has set up vLLM's process groups
class TestLoading:
    def test_serialised_fp8_with_scales_of_the_cache(self, tmp_path):
        kept = f"{BLOCK}.ff_out"
        folder = write_quantized(CHECKPOINT, tmp_path / "fp8", "fp8", kept=(kept,))
        model, tensors = loaded(folder), stored(folder)
        block = model.transformer.blocks[0]
        assert block.attention.attn_out.weight.dtype == torch.float8_e4m3fn
        found = block.attention.attn_out.weight.view(torch.uint8)
        assert torch.equal(found, tensors[f"{BLOCK}.attn_out.weight"].view(torch.uint8))
        merged = [tensors[f"{BLOCK}.{name}.weight_scale"] for name in ("ff_proj", "up_proj")]
        assert block.gate_up_proj.weight_scale.tolist() == [float(scale) for scale in merged]
        assert isinstance(block.ff_out.quant_method, UnquantizedLinearMethod)
        assert torch.equal(block.ff_out.weight, tensors[f"{kept}.weight"].bfloat16())
        assert not isinstance(
            model.transformer.blocks[1].ff_out.quant_method, UnquantizedLinearMethod
        )

    def test_compressed_tensors_fp8_with_a_regular_expression(self, tmp_path):
        folder = tmp_path / "fp8"
        quantize_checkpoint(CHECKPOINT, folder, SCHEMES["fp8"])
        model, tensors = loaded(folder), stored(folder)
        block = model.transformer.blocks[0]
        found = block.ff_out.weight.view(torch.uint8)
        assert torch.equal(found, tensors[f"{BLOCK}.ff_out.weight"].view(torch.uint8))
        assert torch.equal(block.ff_out.weight_scale, tensors[f"{BLOCK}.ff_out.weight_scale"])
        # The same list by a pattern over published names; block 0 is not quantised.
        values = json.loads((folder / "config.json").read_text())
        quantization = values["quantization_config"]
        quantization["ignore"] = [r"re:model\.transformer\.blocks\.0\.", HEAD]
        (folder / "config.json").write_text(json.dumps(values))
        plain = {n: t for n, t in stored(CHECKPOINT).items() if n.startswith(f"{BLOCK}.")}
        scales = {f"{n}_scale" for n in plain}
        kept = {n: t for n, t in tensors.items() if n not in scales} | plain
        checkpoint.write_folder(tmp_path / "mixed", kept.items(), lambda work, _: None)
        for file in folder.iterdir():
            if file.suffix == ".json" and file.is_file():
                (tmp_path / "mixed" / file.name).write_bytes(file.read_bytes())
        model = loaded(tmp_path / "mixed")
        first, second = model.transformer.blocks[:2]
        for layer in (first.attention.qkv_proj, first.gate_up_proj, first.ff_out):
            assert layer.weight.dtype == torch.bfloat16
        assert second.attention.qkv_proj.weight.dtype == torch.float8_e4m3fn

    def test_online_fp8(self, monkeypatch):
        """vLLM rounds while it loads; the CPU build lacks that one operation, so it is stated."""

        def scaled_fp8_quant(input, scale=None, **_):
            return (input.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn), scale

        monkeypatch.setattr("vllm._custom_ops.scaled_fp8_quant", scaled_fp8_quant)
        model, tensors = loaded(CHECKPOINT, quantization="fp8"), stored(CHECKPOINT)
        for number, block in enumerate(model.transformer.blocks):
            layer = block.ff_out
            assert layer.weight.dtype == torch.float8_e4m3fn
            plain = tensors[f"model.transformer.blocks.{number}.ff_out.weight"].float()
            found = layer.weight.float() * layer.weight_scale.float()
            found = found if found.shape == plain.shape else found.T  # as the kernel wants it
            assert (found - plain).abs().max() <= plain.abs().max() / 16
        assert model.lm_head.weight.dtype == torch.bfloat16

    @pytest.mark.parametrize("change", ["missing", "unexpected"])
    def test_what_does_not_fit_is_named(self, tmp_path, change):
        folder = tmp_path / "int8"
        quantize_checkpoint(CHECKPOINT, folder, SCHEMES["int8"])
        tensors = stored(folder)
        name = f"{BLOCK}.ff_out.weight_scale"
        if change == "missing":
            del tensors[name]
        else:
            name = f"{BLOCK}.ff_in.weight"
            tensors[name] = torch.zeros(2, 2)
        (folder / checkpoint.SINGLE_FILE).unlink()
        checkpoint.write_folder(tmp_path / "new", tensors.items(), lambda work, _: None)
        (tmp_path / "new" / checkpoint.SINGLE_FILE).rename(folder / checkpoint.SINGLE_FILE)
        # A missing tensor is named by the parameter that stays empty.
        named = name if change == "unexpected" else "transformer.blocks.0.ff_out.weight_scale"
        with pytest.raises(ValueError, match=rf"{change} \['{named}'\]"):
            loaded(folder)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_a_matrix_is_its_numbers_times_its_scales(scheme):
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(0))
    weight[3] *= 1e4
    weight[5] = 0
    numbers, scale = quantize_matrix(weight.bfloat16(), scheme)
    assert numbers.dtype == scheme.dtype and scale.shape == (48, 1)
    error = (numbers.float() * scale - weight.bfloat16().float()).abs()
    step = scale / 2 if scheme.dtype == torch.int8 else weight.abs() / 16 + scale / 1024
    assert bool((error <= step * 1.01).all())


def test_a_quantised_checkpoint_is_not_quantised_again(tmp_path):
    quantize_checkpoint(CHECKPOINT, tmp_path / "once", SCHEMES["int8"])
    with pytest.raises(ValueError, match="unexpected"):
        quantize_checkpoint(tmp_path / "once", tmp_path / "twice", SCHEMES["int8"])
    assert not (tmp_path / "twice").exists()
