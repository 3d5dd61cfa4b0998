"""Algorithm A written out literally, and a fake forward to run it on.

The transcription follows the numbered steps of the specification (docs/decoding.md, "Algorithm A")
for one row, with nothing skipped and nothing restricted: whole sequence, all columns, every step's
forward. It shares no code with the package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Logits = Callable[[Tensor], Tensor]
"""ids int64 [L] → logits [L, V]."""
Draws = Callable[[int, int, Tensor], tuple[Tensor, Tensor]]
"""`(block, step, rows)` → uniform noise [rows, V] and uniform confidences [rows], float64."""


def num_transfer_tokens(num_masked: int, steps: int) -> list[int]:
    """Section 1.1: `base + 1` for the first `rem` steps, `base` for the others."""
    base, rem = num_masked // steps, num_masked % steps
    return [base + 1 if i < rem else base for i in range(steps)]


def algorithm_a(
    model: Logits,
    prompt: list[int],
    *,
    num_tokens: int,
    steps: int,
    block_length: int,
    mask_id: int,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    remasking: str = "low_confidence",
    draws: Draws | None = None,
    slots: list[int] | None = None,
) -> list[int]:
    """The answer, `num_tokens` ids.

    `draws` replaces the original's global random stream. `slots` starts the answer with known ids
    in it, which the steps below leave alone as they leave everything that is not a mask.
    """
    assert num_tokens % block_length == 0
    num_blocks = num_tokens // block_length
    assert steps % num_blocks == 0
    steps_per_block = steps // num_blocks
    x = torch.tensor(prompt + (slots or [mask_id] * num_tokens))
    prompt_index = x != mask_id
    for block in range(num_blocks):
        start = len(prompt) + block * block_length
        end = start + block_length
        counts = num_transfer_tokens(int((x[start:end] == mask_id).sum()), steps_per_block)
        for i in range(steps_per_block):
            mask_index = x == mask_id
            logits = model(x)
            if cfg_scale > 0:
                u = x.clone()
                u[prompt_index] = mask_id
                l_u = model(u)
                logits = l_u + (cfg_scale + 1) * (logits - l_u)
            rows = mask_index[:end].nonzero()[:, 0]
            noise = torch.full(logits.shape, 0.5, dtype=torch.float64)
            uniform = torch.zeros(len(x), dtype=torch.float64)
            if draws is not None:
                noise[rows], uniform[rows] = draws(block, i, rows)
            if temperature == 0:
                noised = logits
            else:
                noised = logits.to(torch.float64).exp() / (-torch.log(noise)) ** temperature
            x0 = torch.argmax(noised, dim=-1)
            if remasking == "low_confidence":
                p = torch.softmax(logits.to(torch.float64), dim=-1)
                confidence = p[torch.arange(len(x)), x0]
            else:
                confidence = uniform
            confidence = confidence.clone()
            confidence[end:] = -torch.inf
            confidence[~mask_index] = -torch.inf
            chosen = torch.topk(confidence, counts[i]).indices
            x[chosen] = x0[chosen]
    return x[len(prompt) :].tolist()


@dataclass(frozen=True)
class FakeModel:
    """Logits at a position depend on the ids and places of all positions, in both directions.

    Args:
        table: float64 [V, D] one vector an id.
        places: float64 [L, D] one vector a position id.
        head: float64 [D, V].
        bias: float64 [V] added to the logits, to make some ids likely.
    """

    table: Tensor
    places: Tensor
    head: Tensor
    bias: Tensor

    @classmethod
    def random(cls, num_ids: int, *, seed: int = 0, length: int = 128, width: int = 12):
        """Random vectors; the logits spread over about ±6."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        return cls(draw(num_ids, width), draw(length, width), draw(width, num_ids), draw(num_ids))

    def favour(self, token_id: int, by: float) -> FakeModel:
        """The same model with one id more likely."""
        bias = self.bias.clone()
        bias[token_id] += by
        return FakeModel(self.table, self.places, self.head, bias)

    def logits(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """[L] ids → [L, V]."""
        positions = torch.arange(len(ids)) if positions is None else positions
        own = self.table[ids] + self.places[positions]
        around = torch.tanh(own).sin().mean(0) * 3
        return torch.tanh(own + around) @ self.head + self.bias

    def forward(self, ids: Tensor, positions: Tensor, rows: Tensor, columns) -> Tensor:
        """The signature of `vllm_dynin.sampling.loop.Forward`."""
        return self.logits(ids, positions)[rows][:, columns.ids(ids.device)]
