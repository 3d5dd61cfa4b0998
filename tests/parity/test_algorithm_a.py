"""Our block decoding, driven by the reference loop, against the literal Algorithm A."""

from functools import partial

import pytest
import torch
from helpers.algorithm_a import FakeModel, algorithm_a
from helpers.plans import text_plan

from vllm_dynin.config import LLaDAConfig
from vllm_dynin.sampling.loop import denoise
from vllm_dynin.sampling.noise import StepDraws
from vllm_dynin.tokens import NUM_CONTROL_TOKENS

CONFIG = LLaDAConfig(text_vocab_size=40 + NUM_CONTROL_TOKENS, vocab_size=320, d_model=8, n_heads=2)
MASK = CONFIG.vocabulary.mask
CPU = torch.device("cpu")

# num_tokens, steps, block_length; the original takes only what divides.
SHAPES = [
    (1, 1, 1),
    (8, 8, 8),
    (12, 3, 12),
    (12, 12, 4),
    (12, 6, 4),
    (7, 7, 1),
    (12, 24, 4),  # twice as many steps as tokens: half of them unmask nothing
    (15, 6, 5),  # 2 steps for 5 tokens: 3 and 2
    (16, 4, 16),
]


def decode(model, prompt, num_tokens, **options):
    plan = text_plan(prompt, CONFIG, num_tokens, **options)
    *_, decoder = denoise(plan, model.forward, CPU)
    return decoder.ids.tolist()


def keyed_draws(seed, prompt, block, step, rows):
    """The draws our decoder documents: keyed by the slot, which is the row behind the prompt."""
    draws = StepDraws(seed, 0, block, step).at(rows - len(prompt))
    return draws.uniform(CONFIG.vocab_size), draws.ranking(torch.float64)


@pytest.mark.parametrize("remasking", ["low_confidence", "random"])
@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_original(shape, temperature, cfg_scale, remasking):
    num_tokens, steps, block_length = shape
    model = FakeModel.random(CONFIG.vocab_size, seed=steps)
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        prompt = torch.randint(40, (1 + 3 * seed,), generator=generator).tolist()
        expected = algorithm_a(
            model.logits,
            prompt,
            num_tokens=num_tokens,
            steps=steps,
            block_length=block_length,
            mask_id=MASK,
            temperature=temperature,
            cfg_scale=cfg_scale,
            remasking=remasking,
            draws=partial(keyed_draws, seed, prompt),
        )
        found = decode(
            model,
            prompt,
            num_tokens,
            temperature=temperature,
            seed=seed,
            steps=steps,
            block_length=block_length,
            cfg_scale=cfg_scale,
            remasking=remasking,
            parity="reference",
        )
        assert found == expected


@pytest.mark.parametrize("remasking", ["low_confidence", "random"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("num_tokens", "steps", "block_length"), [(12, 12, 4), (16, 8, 4)])
def test_masks_that_are_proposed_are_kept_and_revisited(
    num_tokens, steps, block_length, temperature, remasking
):
    """PARITY: a slot given the mask id counts as unmasked, and a later block may fill it."""
    num_left = num_refilled = 0
    for seed in range(12):
        model = FakeModel.random(CONFIG.vocab_size, seed=seed).favour(MASK, 5.0)
        prompt = [seed, 2, 3]
        expected = algorithm_a(
            model.logits,
            prompt,
            num_tokens=num_tokens,
            steps=steps,
            block_length=block_length,
            mask_id=MASK,
            temperature=temperature,
            remasking=remasking,
            draws=partial(keyed_draws, seed, prompt),
        )
        options = {"steps": steps, "block_length": block_length, "remasking": remasking}
        plan = text_plan(
            prompt,
            CONFIG,
            num_tokens,
            temperature=temperature,
            seed=seed,
            parity="reference",
            **options,
        )
        left_earlier = set()
        for decoder in denoise(plan, model.forward, CPU):
            window = decoder.ids[: max(decoder.num_committed, block_length)]
            masked = set((window == MASK).nonzero()[:, 0].tolist())
            num_refilled += len(left_earlier - masked)
            left_earlier = masked if decoder.num_committed else set()
            # What was given out is final: a mask in it could still be filled.
            assert decoder.finished or MASK not in decoder.ids[: decoder.num_committed].tolist()
        assert decoder.ids.tolist() == expected
        num_left += expected.count(MASK)
    assert num_left > 0  # or this test would prove nothing


def test_a_mask_left_in_one_block_is_filled_in_a_later_one():
    """The original's selection also sees masks before the window; one case by hand."""
    columns = CONFIG.vocab_size

    def logits(ids):
        # Slot 1 (row 2) proposes the mask id, the least confident of all; once block 1 has begun
        # to fill, it proposes token 7, the most confident.
        out = torch.zeros(len(ids), columns, dtype=torch.float64)
        out[:, 5] = 4.0
        out[3, 5] = 4.5  # no ties: the original leaves their order open
        out[2] = 0.0
        has_begun = bool((ids[3:] != MASK).any())
        out[2, 7 if has_begun else MASK] = 9.0 if has_begun else 3.0
        return out

    class Model:
        def forward(self, ids, positions, rows, columns):
            return logits(ids)[rows][:, columns.ids(ids.device)]

    expected = algorithm_a(logits, [1], num_tokens=4, steps=4, block_length=2, mask_id=MASK)
    assert expected == [5, 7, 5, MASK]  # block 1 spent its last step on the slot left behind
    found = decode(Model(), [1], 4, steps=4, block_length=2, parity="reference")
    assert found == expected


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_default_parity_is_the_original_over_text_columns_without_the_mask(temperature):
    """With every other column at -inf the original proposes what `default` does."""
    vocabulary = CONFIG.vocabulary
    for seed in range(6):
        model = FakeModel.random(CONFIG.vocab_size, seed=seed).favour(MASK, 5.0)

        def text_only(ids, model=model):
            logits = model.logits(ids)
            logits[:, vocabulary.text.stop :] = -torch.inf
            logits[:, MASK] = -torch.inf
            return logits

        def draws(block, step, rows, seed=seed):
            noise = torch.full((len(rows), CONFIG.vocab_size), 0.5, dtype=torch.float64)
            drawn = StepDraws(seed, 0, block, step).at(rows - 2).uniform(vocabulary.text.stop)
            noise[:, : vocabulary.text.stop] = drawn
            return noise, torch.zeros(len(rows), dtype=torch.float64)

        expected = algorithm_a(
            text_only,
            [seed, 1],
            num_tokens=12,
            steps=6,
            block_length=4,
            mask_id=MASK,
            temperature=temperature,
            draws=draws,
        )
        found = decode(
            model, [seed, 1], 12, temperature=temperature, seed=seed, steps=6, block_length=4
        )
        assert found == expected
        assert all(token in vocabulary.text and token != MASK for token in found)


def test_one_block_of_the_specification():
    """Window of 4, counts 2, 1, 1, confidences by step as the document lists them."""
    confidences = iter([[0.9, 0.3, 0.6, 0.8], [0.5, 0.7, 0.4, 0.5], [0.5, 0.5, 0.99, 0.5]])

    def forward(ids, positions, rows, columns):
        # Id 0 with the listed confidence, four other ids with equal parts of the rest.
        table = torch.full((len(ids), columns.width), -torch.inf, dtype=torch.float64)
        for row, confidence in enumerate(next(confidences), start=len(ids) - 4):
            table[row, :5] = torch.tensor([confidence, *[(1 - confidence) / 4] * 4]).log()
        return table[rows]

    plan = text_plan([9], CONFIG, 4, steps=3, block_length=4)
    masked = [(d.ids == MASK).nonzero()[:, 0].tolist() for d in denoise(plan, forward, CPU)]
    assert masked == [[1, 2], [2], []]
