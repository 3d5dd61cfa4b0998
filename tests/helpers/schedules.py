"""Random requests of every kind, decoded one by one and in batches, on a stand-in for the model."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vllm_dynin.canvas import (
    Canvas,
    Decoder,
    GuidanceForm,
    Parity,
    Region,
    Stream,
    Task,
    Unconditional,
)
from vllm_dynin.sampling.batched import BatchedStep, Group, Guidance, RequestStep
from vllm_dynin.sampling.block import BlockOptions
from vllm_dynin.sampling.canvas_memory import CanvasMemory
from vllm_dynin.sampling.columns import Columns
from vllm_dynin.sampling.decoder import CanvasDecoder, Plan, RegionOptions
from vllm_dynin.sampling.fixed_steps import FixedStep, fixed_steps, has_fixed_steps
from vllm_dynin.sampling.guidance import guide
from vllm_dynin.sampling.maskgit import MaskGitOptions
from vllm_dynin.sampling.speech import SpeechOptions
from vllm_dynin.sampling.staging import Staging

CPU = torch.device("cpu")
NUM_IDS, MASK, PINNED, WIDTH = 60, 33, 5, 64
TEXT = ((0, 40),)
IMAGE = ((40, 56),)
SPEECH = ((44, 52), (7, 8), (2, 3))


def random_plan(rng: random.Random) -> Plan:
    """One to three regions of any kind, some slots given, guided or not."""
    slots, regions, options = list[int](), list[Region](), list[RegionOptions]()
    seed = rng.choice([0, 1, 2**40 + 3, -5])
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        slots += [PINNED] * rng.choice([0, 0, 1, 3])
        length = rng.randint(1, 12)
        decoder = rng.choice([Decoder.BLOCK, Decoder.MASKGIT, Decoder.SPEECH])
        part = [MASK if rng.random() < 0.8 else PINNED for _ in range(length)]
        part[rng.randrange(length)] = MASK
        columns = {Decoder.BLOCK: TEXT, Decoder.MASKGIT: IMAGE, Decoder.SPEECH: SPEECH}[decoder]
        regions.append(
            Region(
                start=len(slots),
                stop=len(slots) + length,
                decoder=decoder,
                columns=columns,
                excluded=(7, MASK) if decoder is Decoder.BLOCK else (),
            )
        )
        slots += part
        options.append(_options(rng, decoder, seed))
    slots += [PINNED] * rng.choice([0, 0, 2])
    scale = rng.choice([0.0, 0.0, 1.5, 3.5])
    second = None
    if scale:
        second = Unconditional(
            stream=Stream.contiguous((1,) * 2),
            follows=tuple(rng.random() < 0.7 for _ in slots),
            form=rng.choice(list(GuidanceForm)),
        )
    canvas = Canvas(
        task=Task.TEXT_TO_TEXT,
        parity=Parity.DEFAULT,
        mask_id=MASK,
        conditional=Stream.contiguous(tuple(rng.randrange(30) for _ in range(3))),
        slots=tuple(slots),
        regions=tuple(regions),
        unconditional=second,
    )
    return Plan(canvas=canvas, options=tuple(options), guidance_scale=scale)


def _options(rng: random.Random, decoder: Decoder, seed: int) -> RegionOptions:
    steps, block = rng.choice([1, 2, 3, 5, 8, 40]), rng.choice([1, 2, 4, 5, 16])
    temperature = rng.choice([0.0, 0.0, 0.7, 1.0])
    if decoder is Decoder.MASKGIT:
        schedule = rng.choice(["cosine", "linear", "pow2", "sigmoid"])
        return MaskGitOptions(
            num_steps=steps, schedule=schedule, temperature=temperature, seed=seed
        )
    if decoder is Decoder.SPEECH:
        return SpeechOptions(
            block_length=block, num_steps=steps, temperature=temperature, seed=seed
        )
    return BlockOptions(
        block_length=block,
        num_steps=steps,
        temperature=temperature,
        remasking=rng.choice(["low_confidence", "low_confidence", "random"]),
        seed=seed,
    )


class Model:
    """Hidden states of a canvas that depend on every id of it, and a head; some logits tie."""

    def __init__(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.by_id = torch.randn(NUM_IDS, 8, generator=draw)
        self.by_slot = torch.randn(WIDTH, 8, generator=draw)
        self.head = torch.randn(8, NUM_IDS, generator=draw)

    def hidden(self, prompt: tuple[int, ...], ids_N: Tensor) -> Tensor:
        """[N, 8] of a stream."""
        mixed = self.by_id[torch.tensor(prompt)].sum(0) + self.by_id[ids_N].mean(0) * 3
        mixed = mixed + self.by_id[ids_N].roll(1, 0) * 0.3
        return (mixed + self.by_slot[: len(ids_N)]).mul(2).round()

    def logits(self, hidden_RD: Tensor, columns: Columns) -> Tensor:
        """[R, K] of rows, one by one: a product of several rows may round otherwise."""
        rows = [row @ self.head for row in hidden_RD]
        return torch.stack(rows)[:, columns.ids(CPU)]


@dataclass
class Pair:
    """One request, decoded alone by its decoder and in batches in a slot of the store."""

    plan: Plan
    slot: int
    decoder: CanvasDecoder
    steps: list[FixedStep]
    cursor: int = 0
    emitted: int = 0

    @property
    def is_done(self) -> bool:
        """Whether no step is left."""
        return self.cursor == len(self.steps)


@dataclass
class Schedule:
    """Both drivers side by side: requests come, are preempted, and go, in random batches."""

    rng: random.Random
    model: Model
    num_slots: int = 4
    waiting: list[tuple[Plan, tuple[int, ...]]] = field(default_factory=list)
    running: list[Pair] = field(default_factory=list)
    num_steps: int = 0
    largest_batch: int = 0

    def __post_init__(self) -> None:
        self.memory = CanvasMemory(self.num_slots, WIDTH, 4 * WIDTH, CPU)
        self.staging = Staging(64, CPU)  # too small on purpose: it grows

    def run(self) -> None:
        """Go on until nothing waits or runs."""
        while self.waiting or self.running:
            self._admit()
            batch = [pair for pair in self.running if self.rng.random() < 0.8]
            if batch:
                self._step(batch)
            self.running = [pair for pair in self.running if not pair.is_done]
            if self.running and self.rng.random() < 0.05:
                pair = self.running.pop(self.rng.randrange(len(self.running)))
                committed = tuple(pair.decoder.ids[: pair.emitted].tolist())
                self.waiting.append((pair.plan, committed))

    def _admit(self) -> None:
        free = set(range(self.num_slots)) - {pair.slot for pair in self.running}
        for slot in self.rng.sample(sorted(free), len(free)):
            if not self.waiting:
                return
            plan, committed = self.waiting.pop(0)
            assert has_fixed_steps(plan)
            decoder = CanvasDecoder(plan, CPU, committed)
            self.memory.enter(slot, decoder.ids.tolist(), len(decoder.ids), MASK)
            steps = fixed_steps(plan, len(committed))
            self.running.append(Pair(plan, slot, decoder, steps, emitted=len(committed)))

    def _step(self, batch: list[Pair]) -> None:
        hidden, parts, first_row = list[Tensor](), list[RequestStep](), 0
        for pair in batch:
            canvas, ids = pair.plan.canvas, self._canvas(pair)
            own, guidance = self.model.hidden(canvas.conditional.ids, ids), None
            hidden.append(own)
            if canvas.unconditional is not None:
                follows = torch.tensor(canvas.unconditional.follows)
                seen = torch.where(follows, ids, MASK)
                hidden.append(self.model.hidden(canvas.unconditional.stream.ids, seen))
                guidance = Guidance(pair.plan.guidance_scale, canvas.unconditional.form)
            second_row = first_row + len(ids)
            step = pair.steps[pair.cursor]
            parts.append(RequestStep(step, pair.slot, first_row, second_row, guidance))
            first_row += sum(map(len, hidden[-1:] if guidance is None else hidden[-2:]))
        hidden_TD = torch.cat(hidden)
        self.staging.begin()
        step_of_all = BatchedStep(parts, MASK, self.memory, self.staging)
        self.staging.send()
        step_of_all.find()

        def logits(group: Group) -> Iterator[tuple[int, Tensor, Tensor | None]]:
            for first in range(group.first, group.stop, 7):  # in tiles
                stop = min(first + 7, group.stop)
                rows, second = step_of_all.rows_R[first:stop], None
                own = self.model.logits(hidden_TD[rows], group.columns)
                if group.has_second:
                    rows = step_of_all.second_rows_R[first:stop]
                    second = self.model.logits(hidden_TD[rows], group.columns)
                yield stop - first, own, second

        step_of_all.run(logits)
        for pair in batch:
            self._step_alone(pair)
            assert torch.equal(self._canvas(pair), pair.decoder.ids)
            assert pair.steps[pair.cursor].num_committed == pair.decoder.num_committed
            pair.emitted = pair.decoder.num_committed
            pair.cursor += 1
            assert pair.is_done == pair.decoder.finished
        self.num_steps += len(batch)
        self.largest_batch = max(self.largest_batch, len(batch))

    def _canvas(self, pair: Pair) -> Tensor:
        return self.memory.ids_SW[pair.slot, : pair.plan.canvas.num_slots]

    def _step_alone(self, pair: Pair) -> None:
        canvas, decoder, step = pair.plan.canvas, pair.decoder, pair.steps[pair.cursor]
        slots = decoder.wanted()
        assert len(slots) == step.num_masked
        assert decoder.columns == step.rule.columns
        hidden = self.model.hidden(canvas.conditional.ids, decoder.ids)
        logits = self.model.logits(hidden[slots], decoder.columns)
        if canvas.unconditional is not None:
            seen = self.model.hidden(canvas.unconditional.stream.ids, decoder.unconditional_ids())
            other = self.model.logits(seen[slots], decoder.columns)
            form = canvas.unconditional.form
            logits = guide(logits, other, pair.plan.guidance_scale, form)
        decoder.step(slots, lambda first, stop: logits[first:stop].clone())


def run_schedule(seed: int, num_requests: int = 6) -> Schedule:
    """One random schedule; raises where the drivers differ after a step."""
    rng = random.Random(seed)
    schedule = Schedule(rng, Model(seed), num_slots=rng.choice([1, 3, 4, 8]))
    schedule.waiting = [(random_plan(rng), ()) for _ in range(num_requests)]
    schedule.run()
    return schedule
