"""A deterministic stand-in for the model: logits of a slot depend on every id of the canvas."""

import torch

MASK = 7
FIRST = 10  # id of the first code


class FakeModel:
    """Logits `[slots, num_codes]` of a canvas, in a chosen dtype."""

    def __init__(self, num_slots, num_codes, *, extra_ids=(), dtype=torch.float32, seed=0) -> None:
        draw = torch.Generator().manual_seed(seed)
        width = 8
        num_ids = max(FIRST + num_codes, *extra_ids, MASK) + 1
        self.by_id = torch.randn(num_ids, width, generator=draw)
        self.by_slot = torch.randn(num_slots, width, generator=draw)
        self.head = torch.randn(width, num_codes + len(extra_ids), generator=draw)
        self.dtype = dtype
        self.num_calls = 0

    def __call__(self, ids_N):
        self.num_calls += 1
        mixed = self.by_id[ids_N].mean(0) * 2 + self.by_id[ids_N].roll(1, 0) * 0.3
        return ((mixed + self.by_slot) @ self.head).to(self.dtype)


def run(decoder, ids, model):
    """Drive a decoder as the drivers do; yields the canvas after each step."""
    while not decoder.finished:
        slots = decoder.wanted()
        assert (ids[slots] == MASK).all()
        logits = model(ids)[slots]
        decoder.step(slots, lambda first, stop, logits=logits: logits[first:stop].clone())
        yield ids.clone()
