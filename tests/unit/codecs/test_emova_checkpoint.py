"""The published checkpoint's names and shapes, written out from its key list, and our loader."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vllm_dynin.processors.codecs.convert import convert, main
from vllm_dynin.processors.codecs.emova_speech import DROPPED, our_name
from vllm_dynin.processors.codecs.loading import fold_weight_norm
from vllm_dynin.processors.codecs.speech import TOY_SPEECH_DIRECTORY, SpeechCodec
from vllm_dynin.processors.codecs.speech_to_units import SpeechToUnits, SpeechToUnitsConfig
from vllm_dynin.processors.codecs.styles import STYLES
from vllm_dynin.processors.codecs.units_to_speech import UnitsToSpeech, UnitsToSpeechConfig

MAGNITUDE = {"pair": ".weight_g", "parametrized": ".parametrizations.weight.original0"}
DIRECTION = {"pair": ".weight_v", "parametrized": ".parametrizations.weight.original1"}


class Names:
    """Collects names and shapes in one spelling of weight norm."""

    def __init__(self, spelling, norm_case=str.upper):
        self.shapes, self.spelling, self.norm_case = {}, spelling, norm_case

    def both(self, name, *weight):
        self.shapes[f"{name}.weight"] = weight
        self.shapes[f"{name}.bias"] = weight[:1]

    def norm(self, name, channels):
        for part in ("gamma", "beta"):
            self.shapes[f"{name}.{self.norm_case(part)}"] = (channels,)

    def weight_norm(self, name, *shape, dim=0, bias=None):
        if self.spelling == "folded":
            self.shapes[f"{name}.weight"] = shape
        else:
            g = tuple(size if d == dim else 1 for d, size in enumerate(shape))
            self.shapes[name + MAGNITUDE[self.spelling]] = g
            self.shapes[name + DIRECTION[self.spelling]] = shape
        self.shapes[f"{name}.bias"] = (bias or shape[0],)


def s2u_names(names, config):
    """Section 2.6."""
    enc, sizes = "encoder.encoder", config.encoder
    low, high = sizes.low_filters, sizes.high_filters
    names.shapes[f"{enc}.mask_emb"] = (sizes.num_mels,)
    names.shapes[f"{enc}.wav2spec.featurizer.window"] = (320,)
    names.shapes[f"{enc}.wav2spec.featurizer.fb"] = (1, sizes.num_mels, 257)
    blocks = f"{enc}.feature_encoder.block_modules"
    for n, (cin, cout, kernel) in {
        0: (sizes.num_mels, low[0], 5),
        1: (low[0], low[1], 5),
        2: (low[1], low[2], 1),
        4: (low[2], high[0], 5),
        5: (high[0], high[1], 1),
    }.items():
        names.both(f"{blocks}.{n}.conv.conv", cout, cin, kernel)
        names.both(f"{blocks}.{n}.norm", cout)
    for n, width, layers in ((3, low[2], sizes.low_layers), (6, high[1], sizes.high_layers)):
        names.weight_norm(
            f"{blocks}.{n}.pos_conv.0",
            width,
            width // sizes.pos_groups,
            sizes.pos_kernel,
            dim=2,
        )
        for i in range(layers):
            layer = f"{blocks}.{n}.layers.{i}"
            for part in "qkv":
                names.both(f"{layer}.self_attn.{part}_proj", width, width)
            names.both(f"{layer}.self_attn.out_proj", width, width)
            names.both(f"{layer}.self_attn_layer_norm", width)
            names.both(f"{layer}.fc1", sizes.ffn_factor * width, width)
            names.both(f"{layer}.fc2", width, sizes.ffn_factor * width)
            names.both(f"{layer}.final_layer_norm", width)
        names.both(f"{blocks}.{n}.layer_norm", width)
    names.both("encoder.pre_quant", len(config.levels), high[1])
    names.shapes["encoder.quantizer._levels_np"] = (len(config.levels),)
    names.shapes["encoder.quantizer._basis"] = (len(config.levels),)
    for n in range(4):
        names.both(f"encoder.decoder.conv_layers.{n}.conv.conv", 512, 4 if n == 0 else 512, 5)
    names.both("encoder.decoder.decoder_layers.0", 241, 512, 1)


def dilated_names(names, prefix, channels, layers):
    for i in range(layers):
        names.both(f"{prefix}.convs_sep.{i}", channels, 1, 3)
        names.both(f"{prefix}.convs_1x1.{i}", channels, channels, 1)
        names.norm(f"{prefix}.norms_1.{i}", channels)
        names.norm(f"{prefix}.norms_2.{i}", channels)


def gated_names(names, prefix, channels, layers, style):
    for i in range(layers):
        names.weight_norm(f"{prefix}.in_layers.{i}", 2 * channels, channels, 5)
        out = channels if i == layers - 1 else 2 * channels
        names.weight_norm(f"{prefix}.res_skip_layers.{i}", out, channels, 1)
    names.weight_norm(f"{prefix}.cond_layer", 2 * channels * layers, style, 1)


def u2s_names(names, config):
    """Section 3.8."""
    c, style, gen = config.channels, config.style_channels, config.generator
    enc = "decoder.enc_p"
    names.shapes[f"{enc}.emb.weight"] = (config.num_symbols, c)
    for i in range(config.layers):
        attention = f"{enc}.encoder.attn_layers.{i}"
        for part in "kv":
            names.shapes[f"{attention}.emb_rel_{part}"] = (1, 9, c // config.heads)
        for part in "qkvo":
            names.both(f"{attention}.conv_{part}", c, c, 1)
        names.norm(f"{enc}.encoder.norm_layers_1.{i}", c)
        names.norm(f"{enc}.encoder.norm_layers_2.{i}", c)
        names.both(f"{enc}.encoder.ffn_layers.{i}.conv_1", config.filter_channels, c, 3)
        names.both(f"{enc}.encoder.ffn_layers.{i}.conv_2", c, config.filter_channels, 3)
    names.both(f"{enc}.proj", 2 * c, c, 1)
    for stage in ("", "post_"):
        for part in ("pre", "proj"):
            names.both(f"decoder.dp.{stage}{part}", c, 1 if stage + part == "post_pre" else c, 1)
        dilated_names(names, f"decoder.dp.{stage}convs", c, config.duration_layers)
        names.shapes[f"decoder.dp.{stage}flows.0.m"] = (2, 1)
        names.shapes[f"decoder.dp.{stage}flows.0.logs"] = (2, 1)
        for n in (1, 3, 5, 7):
            flow = f"decoder.dp.{stage}flows.{n}"
            names.both(f"{flow}.pre", c, 1, 1)
            dilated_names(names, f"{flow}.convs", c, config.duration_layers)
            names.both(f"{flow}.proj", 29, c, 1)
    names.both("decoder.dp.cond", c, style, 1)
    for n in (0, 2, 4, 6):
        flow = f"decoder.flow.flows.{n}"
        names.both(f"{flow}.pre", c, c // 2, 1)
        names.both(f"{flow}.post", c // 2, c, 1)
        gated_names(names, f"{flow}.enc", c, config.flow_layers, style)
    width = gen.initial_channels
    names.both("decoder.dec.conv_pre", width, c, 7)
    names.both("decoder.dec.cond", width, style, 1)
    for i, kernel in enumerate(gen.upsample_kernels):
        width //= 2
        names.weight_norm(f"decoder.dec.ups.{i}", 2 * width, width, kernel, bias=width)
        for j, size in enumerate(gen.resblock_kernels):
            block = f"decoder.dec.resblocks.{i * len(gen.resblock_kernels) + j}"
            for part in ("convs1", "convs2"):
                for n in range(len(gen.resblock_dilations)):
                    names.weight_norm(f"{block}.{part}.{n}", width, width, size)
    names.shapes["decoder.dec.conv_post.weight"] = (1, width, 7)
    # Training and cloning only: a few of many, by their prefixes.
    names.both("decoder.enc_q.pre", c, 513, 1)
    gated_names(names, "decoder.enc_q.enc", c, 4, style)
    names.shapes["decoder.emb_g.weight"] = (1344, style)
    names.weight_norm("decoder.enc_r.convs.0", 32, 1, 3)
    names.shapes["style_embedding.weight"] = (config.num_styles, style)


def published_names(spelling="pair", s2u=None, u2s=None, norm_case=str.upper):
    names = Names(spelling, norm_case)
    s2u_names(names, s2u or SpeechToUnitsConfig())
    u2s_names(names, u2s or UnitsToSpeechConfig())
    return names.shapes


def kept(shapes):
    import re

    return {
        key: shape
        for key, shape in shapes.items()
        if not key.startswith("encoder.quantizer.") and not any(re.match(p, key) for p in DROPPED)
    }


@pytest.mark.parametrize("spelling", ["pair", "parametrized", "folded"])
def test_published_names_and_shapes_fill_the_networks(spelling):
    """At full size, without memory: every name finds its place and every place its name."""
    with torch.device("meta"):
        s2u, u2s = SpeechToUnits(), UnitsToSpeech()
        state = {
            our_name(k): torch.empty(shape) for k, shape in kept(published_names(spelling)).items()
        }
    given = {key: tuple(tensor.shape) for key, tensor in fold_weight_norm(state).items()}
    wanted = {f"s2u.{k}": tuple(t.shape) for k, t in s2u.state_dict().items()}
    wanted |= {f"u2s.{k}": tuple(t.shape) for k, t in u2s.state_dict().items()}
    assert given == wanted
    assert sum(key.startswith("s2u.feature_encoder.") for key in state) == (
        220 if spelling == "folded" else 222
    )


def test_drops_are_what_is_declared():
    dropped = set(published_names()) - set(kept(published_names()))
    prefixes = {key.rsplit(".", 1)[0] for key in dropped}
    assert all(
        prefix.startswith(
            (
                *("encoder.encoder", "encoder.decoder", "encoder.quantizer", "decoder.enc_q"),
                *("decoder.emb_g", "decoder.enc_r", "decoder.dp.post_", "decoder.dp.flows.1"),
            )
        )
        for prefix in prefixes
    )
    assert "decoder.dp.flows.1.proj" in prefixes
    assert not any(key.startswith("decoder.dp.flows.3") for key in dropped)


# A real checkpoint at test size.

S2U = SpeechToUnitsConfig.tiny()
U2S = UnitsToSpeechConfig.tiny(S2U.num_units)
CONFIG = {
    "model_type": "emova_speech_tokenizer",
    "s2u_unit_type": "40ms_multilingual_8888",
    "u2s_unit_type": "40ms_multilingual_8888_xujing_cosyvoice_FT",
    "u2s_num_styles": 126,
    "u2s_dim_styles": 8,
    "speech_to_units": json.loads(json.dumps(dataclasses.asdict(S2U))),
    "units_to_speech": json.loads(json.dumps(dataclasses.asdict(U2S))),
}


def checkpoint(spelling="pair", norm_case=str.upper, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, shape in published_names(spelling, S2U, U2S, norm_case).items():
        tensors[key] = torch.randn(shape, generator=generator) * 0.3
    computed = SpeechToUnits(S2U).features
    tensors["encoder.encoder.wav2spec.featurizer.window"] = computed.window.clone()
    tensors["encoder.encoder.wav2spec.featurizer.fb"] = computed.fb.clone()
    tensors["encoder.quantizer._levels_np"] = torch.tensor([4.0, 4, 2])
    tensors["encoder.quantizer._basis"] = torch.tensor([1.0, 4, 16])
    return tensors


def respell(tensors, spelling, norm_case):
    """The same weights as `torch.nn.utils` itself would hold them in another spelling."""
    out = {}
    for key, tensor in tensors.items():
        name = key.rsplit(".", 1)[0]
        if key.endswith("weight_v"):
            g = tensors[f"{name}.weight_g"]
            if spelling == "folded":
                dim = 2 if "pos_conv" in key else 0
                out[f"{name}.weight"] = torch._weight_norm(tensor, g, dim)
            else:
                out[name + MAGNITUDE[spelling]], out[name + DIRECTION[spelling]] = g, tensor
        elif not key.endswith("weight_g"):
            for part in ("GAMMA", "BETA"):
                key = key.replace(f".{part}", f".{norm_case(part)}")
            out[key] = tensor
    return out


def write(directory, tensors, config=CONFIG):
    directory.mkdir(exist_ok=True)
    save_file({k: t.contiguous() for k, t in tensors.items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize(
    "spelling, norm_case",
    [("parametrized", str.upper), ("folded", str.upper), ("pair", str.lower)],
)
def test_spellings_load_alike(tmp_path, spelling, norm_case):
    tensors = checkpoint()
    first = SpeechCodec.from_pretrained(write(tmp_path / "a", tensors))
    second = SpeechCodec.from_pretrained(
        write(tmp_path / "b", respell(tensors, spelling, norm_case))
    )
    ours, theirs = first.backend.state_dict(), second.backend.state_dict()
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[key], rtol=1e-6, atol=1e-7, msg=key)
    speech = torch.sin(torch.arange(16000) ** 1.3 * 0.01)
    assert first.encode(speech, 16000) == second.encode(speech, 16000)


def test_weight_norm_as_torch_computes_it(tmp_path):
    """Dim 2 for the position convolutions, dim 0 (input channels) for transposed ones."""
    tensors = checkpoint()
    loaded = SpeechCodec.from_pretrained(write(tmp_path, tensors)).backend
    for module, name, dim in (
        (loaded.s2u.feature_encoder.block_modules[3].pos_conv,
         "encoder.encoder.feature_encoder.block_modules.3.pos_conv.0", 2),
        (loaded.u2s.dec.ups[0], "decoder.dec.ups.0", 0),
        (loaded.u2s.flow.flows["2"].enc.cond_layer, "decoder.flow.flows.2.enc.cond_layer", 0),
    ):  # fmt: skip
        layer = torch.nn.utils.parametrizations.weight_norm(
            torch.nn.Conv1d(1, 1, 1), "weight", dim=dim
        )
        weight = layer.parametrizations.weight
        weight.original0.data = tensors[f"{name}.weight_g"]
        weight.original1.data = tensors[f"{name}.weight_v"]
        torch.testing.assert_close(module.weight, layer.weight.detach(), rtol=1e-6, atol=1e-7)


def test_published_buffers_may_be_missing(tmp_path):
    tensors = {
        k: t for k, t in checkpoint().items() if "featurizer" not in k and "quantizer" not in k
    }
    SpeechCodec.from_pretrained(write(tmp_path, tensors))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("decoder.enc_p.emb.weight"), r"missing: 1 \(u2s.enc_p.emb.weight\)"),
        (lambda t: t.pop("encoder.pre_quant.bias"), r"missing: 1 \(s2u.pre_quant.bias\)"),
        (lambda t: t.pop("decoder.dec.ups.1.weight_g"), "halved"),
        (lambda t: t.update(extra=torch.zeros(1)), r"unexpected: 1 \(extra\)"),
        (
            lambda t: t.update({"decoder.enc_x.y": torch.zeros(1)}),
            r"unexpected: 1 \(decoder.enc_x.y\)",
        ),
        (
            lambda t: t.update({"style_embedding.weight": torch.zeros(125, 8)}),
            r"u2s.style_embedding.weight \(125, 8\) instead of \(126, 8\)",
        ),
        (
            lambda t: t["encoder.encoder.wav2spec.featurizer.fb"].mul_(1.01),
            "different from their computed value: 1 .s2u.features.fb",
        ),
        (lambda t: t["encoder.quantizer._basis"].add_(1), "another speech tokenizer"),
        (
            lambda t: t.update({"encoder.quantizer.codebook": torch.zeros(2)}),
            "another speech tokenizer",
        ),
        (
            lambda t: t.update({"decoder.enc_p.encoder.norm_layers_1.0.gamma": torch.zeros(16)}),
            "two spellings",
        ),
    ],
)
def test_every_key_is_accounted_for(tmp_path, change, message):
    tensors = checkpoint()
    change(tensors)
    with pytest.raises(ValueError, match=message):
        SpeechCodec.from_pretrained(write(tmp_path, tensors))


@pytest.mark.parametrize(
    "entries, message",
    [
        ({"s2u_unit_type": "20ms"}, "s2u_unit_type='20ms'; only '40ms_multilingual_8888'"),
        ({"model_type": "encodec"}, "model_type='encodec'"),
        ({"speech_to_units": {"bands": 3}}, "SpeechToUnitsConfig has no bands"),
        ({"u2s_style2idx": {"emotion-sad": 500}}, "outside the 126 rows"),
        ({"units_to_speech": {"num_units": 7}}, "must be the same"),
    ],
)
def test_wrong_configs(tmp_path, entries, message):
    with pytest.raises(ValueError, match=message):
        SpeechCodec.from_pretrained(write(tmp_path, checkpoint(), {**CONFIG, **entries}))


def test_the_default_dtype_does_not_matter(tmp_path):
    """Float32 parameters and the same results under vLLM's bfloat16, from bfloat16 files too."""
    half = {k: t.bfloat16() if t.ndim > 1 and "fb" not in k else t for k, t in checkpoint().items()}
    write(tmp_path, half)
    sound = torch.sin(torch.arange(16_000, dtype=torch.float32) ** 1.2 * 0.05)

    def run():
        results = []
        for directory in (tmp_path, TOY_SPEECH_DIRECTORY):
            codec = SpeechCodec.from_pretrained(directory)
            state = codec.backend.state_dict().values()
            assert {t.dtype for t in state if t.is_floating_point()} == {torch.float32}
            units = codec.encode(sound, 16_000)
            results += [units, codec.decode(units[:20], seed=0)[0]]
        return results

    expected = run()
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = run()
    finally:
        torch.set_default_dtype(torch.float32)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert found[1].dtype == found[3].dtype == np.float32


def test_own_style_table(tmp_path):
    rows = {"emotion-sad": 3, "emotion-happy": 125}
    codec = SpeechCodec.from_pretrained(
        write(tmp_path, checkpoint(), {**CONFIG, "u2s_style2idx": rows})
    )
    assert len(codec.styles) == 2
    with pytest.raises(ValueError, match="not in this checkpoint"):
        codec.decode([1, 2], style="emotion-angry")


def test_original_pickles_convert(tmp_path):
    """The two original files, each under its own entry and without the wrapper's prefix."""
    tensors = checkpoint()
    parts = {}
    for part, key, prefix in (("s2u", "state_dict", "encoder."), ("u2s", "model", "decoder.")):
        own = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        torch.save({key: own, "iteration": 3}, tmp_path / f"{part}.pt")
        report = convert(tmp_path / f"{part}.pt", tmp_path / part, prefix=prefix)
        assert f"{len(own)} tensors" in report
        parts[part] = tmp_path / part / "model.safetensors"
    from safetensors.torch import load_file

    joined = {**load_file(parts["s2u"]), **load_file(parts["u2s"])}
    joined["style_embedding.weight"] = tensors["style_embedding.weight"]
    first = SpeechCodec.from_pretrained(write(tmp_path / "a", tensors)).backend.state_dict()
    second = SpeechCodec.from_pretrained(write(tmp_path / "b", joined)).backend.state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


# The two files that were published first, and the folder of styles.


@pytest.fixture
def published_files(tmp_path):
    """`s2u.ckpt`, `u2s.pth` with small letters and a config beside it, and the styles."""
    whole = checkpoint()
    kinds = {"encoder.": {}, "decoder.": {}}
    for name, tensor in respell(whole, "pair", str.lower).items():
        for prefix, state in kinds.items():
            if name.startswith(prefix):
                state[name.removeprefix(prefix)] = tensor
    torch.save({"state_dict": kinds["encoder."], "epoch": 3}, tmp_path / "s2u.ckpt")
    torch.save({"model": kinds["decoder."], "iteration": 9}, tmp_path / "u2s.pth")
    (tmp_path / "config.json").write_text('{"train": {"segment_size": 8192}}')
    styles = tmp_path / "styles" / "centroids"
    styles.mkdir(parents=True)
    for style, row in zip(STYLES, whole["style_embedding.weight"], strict=True):
        np.save(styles / f"{style.name}.npy", row.numpy())
    return tmp_path, whole


def test_two_files_become_a_folder_that_serves(published_files, capsys):
    folder, whole = published_files
    out = folder / "speech_codec"
    out.mkdir()
    sizes = {name: CONFIG[name] for name in CONFIG if name != "model_type"}
    (out / "config.json").write_text(json.dumps(sizes))  # of test size; the published needs none
    main([str(folder / "s2u.ckpt"), str(out), "--add-prefix", "encoder."])
    assert "not yet a speech codec: the decoder and --styles" in capsys.readouterr().out
    styles = ["--styles", str(folder / "styles")]
    main([str(folder / "u2s.pth"), str(out), "--add-prefix", "decoder.", *styles])
    assert "is a speech codec" in capsys.readouterr().out
    joined = SpeechCodec.from_pretrained(out)
    assert not any("train" in line for line in (out / "config.json").read_text().splitlines())
    reference = SpeechCodec.from_pretrained(write(folder / "whole", whole))
    for key, tensor in reference.backend.state_dict().items():
        assert torch.equal(tensor, joined.backend.state_dict()[key]), key
    speech = torch.sin(torch.arange(16000) ** 1.3 * 0.01)
    assert joined.encode(speech, 16000) == reference.encode(speech, 16000)
    style = "gender-male_emotion-sad"
    first, second = (codec.decode([1, 2], style=style, seed=1) for codec in (joined, reference))
    np.testing.assert_array_equal(first[0], second[0])
    with pytest.raises(ValueError, match=r"has encoder.*already"):
        convert(folder / "s2u.ckpt", out, prefix="encoder.")


def test_the_folder_says_what_it_is(published_files):
    folder, _ = published_files
    out = folder / "speech_codec"
    convert(folder / "u2s.pth", out, prefix="decoder.", styles=folder / "styles")
    assert not (out / "config.json").exists()
    convert(folder / "s2u.ckpt", out, prefix="encoder.")
    assert json.loads((out / "config.json").read_text()) == {"model_type": CONFIG["model_type"]}


def test_a_style_is_missing(published_files):
    folder, _ = published_files
    next((folder / "styles").rglob("*male_emotion-sad_speed-fast_pitch-low.npy")).unlink()
    with pytest.raises(ValueError, match=r"has 0 files \*gender-\w*male_emotion-sad"):
        convert(folder / "u2s.pth", folder / "o", prefix="decoder.", styles=folder / "styles")
    assert not (folder / "o").exists()
