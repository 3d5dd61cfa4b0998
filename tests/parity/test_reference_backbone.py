"""The reference transformer against the specification's vectors and a slow statement in float64."""

import math

import numpy as np
import pytest
import torch

from vllm_dynin.config import LLaDAConfig
from vllm_dynin.reference.backbone import (
    LLaDA,
    gated,
    rms_norm,
    rope_tables,
    rotate,
    segment_mask,
)

# Logits up to 3.8 in size, float32 against float64; the largest difference measured is 9.1e-7.
FP32_TOLERANCE = {"atol": 5e-6, "rtol": 0}


def small_model(n_heads=4, n_kv_heads=None, seed=0):
    config = LLaDAConfig(
        d_model=16,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        n_layers=2,
        mlp_hidden_size=20,
        text_vocab_size=280,
        vocab_size=290,
    )
    torch.manual_seed(seed)
    model = LLaDA(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


@pytest.fixture(scope="module", autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


# --- vectors of the specification -----------------------------------------------------------------


def test_rms_norm_vector():
    out = rms_norm(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.ones(4), 1e-5)
    expected = torch.tensor([0.3651481, 0.7302963, 1.0954444, 1.4605925])
    assert torch.allclose(out, expected, atol=1e-7, rtol=0)


def test_rms_norm_rounds_before_it_scales():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 64, generator=generator).bfloat16()
    weight = torch.randn(64, generator=generator).bfloat16()
    x32 = x.float()
    normalised = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + 1e-5)
    rounded_first = normalised.bfloat16() * weight
    scaled_first = (normalised * weight.float()).bfloat16()
    assert not torch.equal(rounded_first, scaled_first)  # the input tells the orders apart
    assert torch.equal(rms_norm(x, weight, 1e-5), rounded_first)


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        (0, [1.0, 2.0, 3.0, 4.0]),
        (1, [-1.9841106, 1.9943411, 2.4623780, 4.0028243]),
        (2, [-3.1440389, 1.9886783, -0.3391431, 4.0056410]),
    ],
)
def test_rope_vector(position, expected):
    cos, sin = rope_tables(torch.tensor(position), 4, 500_000.0)
    out = rotate(torch.tensor([1.0, 2.0, 3.0, 4.0]), cos, sin)
    assert torch.allclose(out, torch.tensor(expected), atol=5e-7, rtol=0)


def test_rope_frequencies_of_the_8b_model():
    cos, sin = rope_tables(torch.tensor(1), 128, 500_000.0)
    angles = torch.atan2(sin, cos)
    assert angles[0].item() == pytest.approx(1.0, abs=1e-6)
    assert angles[1].item() == pytest.approx(0.8146172, abs=1e-6)
    assert angles[63].item() == pytest.approx(2.4551407e-06, rel=1e-5)
    assert torch.equal(angles[:64], angles[64:])


def test_gate_vector():
    out = gated(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 5.0]))
    assert torch.allclose(out, torch.tensor([2.1931758, -1.1920292]), atol=1e-6, rtol=0)


# --- an independent statement, one position and one head at a time --------------------------------


def slow_logits(model, ids, positions, allowed):
    """Logits [T, rows] in float64, written from the specification with loops over positions."""
    config = model.config
    weights = {
        name.removeprefix("model.transformer."): value.double().numpy()
        for name, value in model.state_dict().items()
    }
    length, head_dim = len(ids), config.d_model // config.n_heads
    group = config.n_heads // config.n_kv_heads

    def norm(vector, weight):
        return weight * vector / math.sqrt(np.mean(vector**2) + config.rms_norm_eps)

    def turn(vector, position):
        half = head_dim // 2
        out = np.empty(head_dim)
        for j in range(half):
            angle = position * config.rope_theta ** (-2 * j / head_dim)
            a, b = vector[j], vector[j + half]
            out[j] = a * math.cos(angle) - b * math.sin(angle)
            out[j + half] = b * math.cos(angle) + a * math.sin(angle)
        return out

    x = [weights["wte.weight"][token] for token in ids]
    for layer in range(config.n_layers):
        w = {
            name.removeprefix(f"blocks.{layer}.").removesuffix(".weight"): value
            for name, value in weights.items()
            if name.startswith(f"blocks.{layer}.")
        }
        normed = [norm(vector, w["attn_norm"]) for vector in x]
        attended = []
        for i in range(length):
            heads = []
            for h in range(config.n_heads):
                mine = slice(h * head_dim, (h + 1) * head_dim)
                theirs = slice(h // group * head_dim, (h // group + 1) * head_dim)
                query = turn((w["q_proj"] @ normed[i])[mine], positions[i])
                seen = [j for j in range(length) if allowed[i][j]]
                scores = np.array(
                    [query @ turn((w["k_proj"] @ normed[j])[theirs], positions[j]) for j in seen]
                ) / math.sqrt(head_dim)
                share = np.exp(scores - scores.max())
                share /= share.sum()
                heads.append(
                    sum(
                        s * (w["v_proj"] @ normed[j])[theirs]
                        for s, j in zip(share, seen, strict=True)
                    )
                )
            attended.append(w["attn_out"] @ np.concatenate(heads))
        x = [vector + more for vector, more in zip(x, attended, strict=True)]
        for i in range(length):
            normed_i = norm(x[i], w["ff_norm"])
            gate = w["ff_proj"] @ normed_i
            gate = gate / (1 + np.exp(-gate))
            x[i] = x[i] + w["ff_out"] @ (gate * (w["up_proj"] @ normed_i))
    return np.stack([weights["ff_out.weight"] @ norm(v, weights["ln_f.weight"]) for v in x])


@pytest.mark.parametrize("n_kv_heads", [4, 2])
@pytest.mark.parametrize("length", [1, 7])
def test_forward_equals_the_slow_statement(n_kv_heads, length):
    model = small_model(n_kv_heads=n_kv_heads)
    ids = torch.randint(0, 290, (2, length), generator=torch.Generator().manual_seed(1))
    logits = model(ids)
    everything = np.ones((length, length), dtype=bool)
    for row in range(2):
        slow = slow_logits(model, ids[row].tolist(), range(length), everything)
        np.testing.assert_allclose(logits[row].numpy(), slow, **FP32_TOLERANCE)


def test_positions_and_masks_equal_the_slow_statement():
    model = small_model()
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 290, (2, 6), generator=generator)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5], [3, 4, 9, 10, 11, 40]])
    attend = torch.rand(2, 6, 6, generator=generator) < 0.5
    attend |= torch.eye(6, dtype=torch.bool)
    logits = model(ids, positions, attend)
    for row in range(2):
        slow = slow_logits(model, ids[row].tolist(), positions[row].tolist(), attend[row].numpy())
        np.testing.assert_allclose(logits[row].numpy(), slow, **FP32_TOLERANCE)


# --- properties -----------------------------------------------------------------------------------


def test_masked_padding_equals_dropped_padding():
    model = small_model()
    ids = torch.randint(0, 290, (1, 9), generator=torch.Generator().manual_seed(3))
    kept = torch.tensor([[True, True, False, False, True, True, True, False, True]])
    masked = model(ids, attend=kept)[kept]
    dropped = model(ids[kept][None], positions_BT=kept.nonzero()[:, 1][None])[0]
    assert torch.allclose(masked, dropped, **FP32_TOLERANCE)
    outer = kept[:, :, None] & kept[:, None, :]  # rows of the padding see nothing at all
    everything = model(ids, attend=outer)
    assert torch.allclose(everything[kept], dropped, **FP32_TOLERANCE)
    assert everything.isfinite().all()


def test_packed_sequences_do_not_see_one_another():
    model = small_model()
    generator = torch.Generator().manual_seed(4)
    parts = [torch.randint(0, 290, (1, n), generator=generator) for n in (3, 1, 5)]
    positions = torch.cat([torch.arange(part.shape[1]) for part in parts])[None]
    segments = torch.tensor([[0, 0, 0, 1, 2, 2, 2, 2, 2]])
    packed = model(torch.cat(parts, dim=1), positions, segment_mask(segments))
    alone = torch.cat([model(part) for part in parts], dim=1)
    assert torch.allclose(packed, alone, **FP32_TOLERANCE)


def test_chosen_rows_and_columns_are_those_of_the_full_logits():
    model = small_model()
    ids = torch.randint(0, 290, (2, 5), generator=torch.Generator().manual_seed(5))
    full = model(ids)
    rows = torch.tensor([[True, False, False, True, True], [False] * 4 + [True]])
    columns = torch.tensor([7, 280, 3])
    assert torch.allclose(model(ids, rows=rows), full[rows], **FP32_TOLERANCE)
    assert torch.allclose(model(ids, columns=range(5, 9)), full[..., 5:9], **FP32_TOLERANCE)
    both = model(ids, rows=rows, columns=columns)
    assert both.shape == (4, 3)
    assert torch.allclose(both, full[rows][:, columns], **FP32_TOLERANCE)
    assert model(ids, rows=torch.zeros(2, 5, dtype=torch.bool)).shape == (0, 290)
    with pytest.raises(ValueError, match="outside the head's 290 rows"):
        model(ids, columns=range(280, 291))


def test_attention_is_bidirectional():
    model = small_model()
    ids = torch.randint(0, 290, (1, 4), generator=torch.Generator().manual_seed(6))
    changed = ids.clone()
    changed[0, -1] = (ids[0, -1] + 1) % 290
    assert not torch.allclose(model(ids)[0, 0], model(changed)[0, 0], atol=1e-2)


@pytest.mark.parametrize(
    "attend",
    [
        torch.ones(2, 5),
        torch.ones(1, 5, dtype=torch.bool),
        torch.ones(2, 1, 5, 5, dtype=torch.bool),
    ],
)
def test_wrong_masks_are_refused(attend):
    with pytest.raises(ValueError, match="it must be bool"):
        small_model()(torch.zeros(2, 5, dtype=torch.int64), attend=attend)
