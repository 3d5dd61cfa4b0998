"""The network's names, shapes, counts and the pieces whose result is known by hand."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vllm_dynin.processors.codecs.loading import float32_default, load_exact
from vllm_dynin.processors.codecs.magvit import Downsample, Magvit, MagvitConfig, Upsample


def published_shapes():
    """The 382 names and shapes of tokenizers specification §1.6, written out from its table."""
    shapes = {}

    def conv(name, *shape):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, (shape[0],)

    def norm(name, width):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (width,), (width,)

    def block(name, cin, cout):
        norm(f"{name}.norm1", cin)
        conv(f"{name}.conv1", cout, cin, 3, 3)
        norm(f"{name}.norm2", cout)
        conv(f"{name}.conv2", cout, cout, 3, 3)

    for half in ("encoder", "decoder"):
        for i in (1, 2):
            block(f"{half}.mid.block_{i}", 512, 512)
        norm(f"{half}.mid.attn_1.norm", 512)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{half}.mid.attn_1.{part}", 512, 512, 1, 1)
    conv("encoder.conv_in", 128, 3, 3, 3)
    conv("encoder.conv_out", 13, 512, 3, 3)
    conv("encoder.quant_conv", 13, 13, 1, 1)
    norm("encoder.norm_out", 512)
    conv("decoder.conv_in", 512, 13, 3, 3)
    conv("decoder.conv_out", 3, 128, 3, 3)
    conv("decoder.post_quant_conv", 13, 13, 1, 1)
    norm("decoder.norm_out", 128)
    down = [(128, 128, 4), (128, 256, 3), (256, 256, 4), (256, 512, 3), (512, 512, 4)]
    up = [(128, 128, 4), (256, 128, 4), (256, 256, 3), (512, 256, 4), (512, 512, 3)]
    for prefix, levels in (("encoder.down", down), ("decoder.up", up)):
        for level, (cin, cout, blocks) in enumerate(levels):
            for i in range(blocks):
                block(f"{prefix}.{level}.block.{i}", cin if i == 0 else cout, cout)
    for prefix, level, cout, cin in (
        ("encoder.down", 1, 256, 128),
        ("encoder.down", 3, 512, 256),
        ("decoder.up", 1, 128, 256),
        ("decoder.up", 3, 256, 512),
    ):
        conv(f"{prefix}.{level}.block.0.nin_shortcut", cout, cin, 1, 1)
    for level, width in enumerate((128, 256, 256, 512)):
        conv(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    for level, width in enumerate((128, 256, 256, 512), start=1):
        conv(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    shapes["quantize.embedding"], shapes["quantize.power_vals"] = (8192, 13), (13,)
    return shapes


def test_names_and_shapes_are_the_published_ones():
    with torch.device("meta"):
        network = Magvit(MagvitConfig())
    ours = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert len(ours) == 382
    assert ours == published_shapes()
    assert sum(p.numel() for p in network.encoder.parameters()) == 55_439_171
    assert sum(p.numel() for p in network.decoder.parameters()) == 39_947_833


@pytest.mark.parametrize(
    ("side", "encode", "decode"), [(256, 355, 301), (336, 612, 518), (512, 1422, 1205)]
)
def test_the_graph_costs_what_the_published_one_costs(side, encode, decode):
    """GFLOP of tokenizers specification §6; a block too many or at another size would show."""
    with torch.device("meta"), torch.no_grad():
        network = Magvit(MagvitConfig())
        inputs = (torch.zeros(1, 3, side, side), torch.zeros(1, 13, side // 16, side // 16))
        halves = (network.encoder, network.decoder)
        for half, values, expected in zip(halves, inputs, (encode, decode), strict=True):
            with FlopCounterMode(display=False) as counter:
                half(values)
            assert counter.get_total_flops() / 1e9 == pytest.approx(expected, abs=0.5)


@pytest.fixture(scope="module")
def published():
    """A network of the published size, and tensors under the published names."""
    with torch.device("meta"):
        network = Magvit(MagvitConfig())
    network = network.to_empty(device="cpu")
    toy = Magvit(
        MagvitConfig(
            channels=32,
            encoder_multipliers=(1,),
            decoder_multipliers=(1,),
            encoder_blocks=(1,),
            decoder_blocks=(1,),
        )
    )
    network.quantize.load_state_dict(toy.quantize.state_dict())
    one = torch.full((1,), 0.5)  # expanded: the tensors take no memory
    tensors = {k: one.expand(shape) for k, shape in published_shapes().items()}
    tensors["quantize.power_vals"] = torch.tensor([4096 >> k for k in range(13)])
    tensors["quantize.embedding"] = torch.tensor(
        [[1.0 if i >> (12 - c) & 1 else -1.0 for c in range(13)] for i in range(8192)]
    )
    return network, tensors


def test_a_published_checkpoint_is_consumed_whole(published):
    network, tensors = published
    load_exact(network, tensors, optional=[r"quantize\."])
    assert all((p == 0.5).all() for p in network.parameters())
    without = {k: t for k, t in tensors.items() if not k.startswith("quantize.")}
    load_exact(network, without, optional=[r"quantize\."])


@pytest.mark.parametrize("name", ["encoder.quant_conv.bias", "decoder.up.3.block.0.norm1.weight"])
def test_one_missing_or_one_extra_key_fails(published, name):
    network, tensors = published
    with pytest.raises(ValueError, match=rf"missing: 1 \({name}\)"):
        load_exact(network, {k: t for k, t in tensors.items() if k != name}, optional=["quant"])
    with pytest.raises(ValueError, match=rf"unexpected: 1 \({name}_ema\)"):
        load_exact(network, tensors | {f"{name}_ema": torch.ones(1)}, optional=["quant"])


def test_another_bit_order_is_noticed(published):
    network, tensors = published
    for name in ("quantize.power_vals", "quantize.embedding"):
        flipped = tensors | {name: tensors[name].flip(-1)}
        with pytest.raises(ValueError, match=rf"computed value: 1 \({name}\)"):
            load_exact(network, flipped, optional=[r"quantize\."])


@pytest.mark.parametrize(("tap", "shift"), [((0, 0), 0), ((1, 1), 1), ((2, 2), 2)])
def test_downsampling_pads_right_and_below_only(tap, shift):
    layer = Downsample(1)
    with torch.no_grad():
        layer.conv.weight.zero_()
        layer.conv.bias.zero_()
        layer.conv.weight[0, 0, tap[0], tap[1]] = 1
        x = torch.arange(1.0, 17).view(1, 1, 4, 4)
        y = layer(x)
    padded = torch.zeros(6, 6)
    padded[:4, :4] = x[0, 0]
    assert torch.equal(y[0, 0], padded[shift : shift + 4 : 2, shift : shift + 4 : 2])


def test_downsampling_sizes():
    sizes, x = [], torch.zeros(1, 1, 336, 16)
    for _ in range(4):
        x = Downsample(1)(x)
        sizes.append(x.shape[2])
    assert sizes == [168, 84, 42, 21]


def test_upsampling_repeats_then_convolves():
    layer = Upsample(1)
    with torch.no_grad():
        layer.conv.weight.zero_()
        layer.conv.bias.zero_()
        layer.conv.weight[0, 0, 1, 1] = 1
        y = layer(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
    assert y[0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]


def test_parameters_are_float32_under_another_default():
    torch.set_default_dtype(torch.bfloat16)
    try:
        with float32_default():
            network = Magvit(MagvitConfig.toy())
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in network.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "fields",
    [
        {"encoder_blocks": (1, 1)},
        {
            "encoder_multipliers": (),
            "encoder_blocks": (),
            "decoder_multipliers": (),
            "decoder_blocks": (),
        },
        {"decoder_multipliers": (0, 1, 2, 2, 4)},
        {"norm_groups": 48},
        {"norm_groups": 0},
        {"num_bits": 0},
        {"num_bits": 25},
        {"channels": 0},
    ],
)
def test_impossible_sizes_are_refused(fields):
    with pytest.raises(ValueError):
        MagvitConfig(**fields)


def test_config_survives_json():
    for config in (MagvitConfig(), MagvitConfig.toy()):
        assert MagvitConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert MagvitConfig().patch == 16
