"""The NumPy stand-ins of the runner's kernels against vLLM's own, in Triton's interpreter."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed: its kernels are the reference")
if torch.cuda.is_available():
    pytest.skip("the stand-ins are for machines without a GPU", allow_module_level=True)
os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported

from vllm.triton_utils import dispatcher

from vllm_dynin import compat
from vllm_dynin.kernels import runner_cpu

SLOTS, MAX_LEN, DRAFTS, VOCAB = 11, 97, 19, 61
PAD = -1
# Requests in the batch: none, one, odd, as many as there are slots.
BATCHES = [0, 1, 5, SLOTS]


def original(name: str) -> Any:
    """vLLM's own kernel, also where an engine of this process has replaced it already."""
    if name in dispatcher._registry:
        kernel, _ = dispatcher._registry[name]
    else:
        module, _, attribute = name.rpartition(".")
        kernel = getattr(importlib.import_module(module), attribute)
    assert type(kernel).__name__ == "InterpretedFunction", (
        "vLLM's kernels were imported before TRITON_INTERPRET=1 was set; set it in conftest.py"
    )
    return kernel


def fitting(name: str) -> Callable[..., None]:
    """The replacement for the kernel of the installed version, as compat chooses it."""
    theirs = list(original(name).arg_names)
    (found,) = (f for f in runner_cpu.OVERRIDES[name] if compat.kernel_arguments(f) == theirs)
    return found


def takes(kernel: str, argument: str) -> bool:
    """Whether the installed version's kernel has an argument that 0.33 added."""
    return argument in original(KERNELS[kernel]).arg_names


KERNELS = {name.rpartition("._")[2].removesuffix("_kernel"): name for name in runner_cpu.OVERRIDES}


@dataclass
class Launch:
    """One call: the kernel's arguments, its grid, and the tensors it may write."""

    args: list[Any]
    grid: tuple[int, ...]
    written: list[torch.Tensor]
    options: dict[str, Any] = field(default_factory=dict)


class State:
    """A random state of the runner; the same seed gives the same state."""

    def __init__(self, seed: int, num_reqs: int, max_query: int) -> None:
        self.rng = rng = np.random.default_rng(seed)
        self.num_reqs = num_reqs
        self.slots = self.ints(rng.permutation(SLOTS)[:num_reqs])
        self.query_lens = rng.integers(0 if num_reqs > 1 else 1, max_query + 1, num_reqs)
        self.num_tokens = int(self.query_lens.sum())
        # Longer than R + 1, as the runner's persistent buffer is; the tail repeats the end.
        padded = np.concatenate([[0], np.cumsum(self.query_lens), [self.num_tokens] * 3])
        self.query_start = self.ints(padded)
        self.computed = self.ints(rng.integers(0, MAX_LEN - max_query, SLOTS))
        self.prefill = self.ints(rng.integers(1, MAX_LEN + 1, SLOTS))
        self.all_ids = self.ints(rng.integers(0, VOCAB, (SLOTS, MAX_LEN)))
        self.input_ids = self.ints(rng.integers(0, VOCAB, self.num_tokens + 7))

    def ints(self, values: Any, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(dtype)

    def cumulative(self, counts: np.ndarray) -> torch.Tensor:
        return self.ints(np.concatenate([[0], np.cumsum(counts)]))


def prefill_inputs(state: State) -> Launch:
    lookahead = int(state.rng.integers(1, 4))
    following = state.ints(state.rng.integers(0, VOCAB, (lookahead, SLOTS)))
    args = [
        state.input_ids,
        following,
        following.stride(0),
        lookahead,
        state.slots,
        state.query_start,
        state.all_ids,
        state.all_ids.stride(0),
        state.prefill,
        state.computed,
        32,
        4,
    ]
    return Launch(args, (state.num_reqs,), [state.input_ids, following])


def pos_seq_lens(state: State) -> Launch:
    positions = state.ints(state.rng.integers(0, 9, state.num_tokens + 7), torch.int64)
    seq_lens = state.ints(state.rng.integers(0, 9, SLOTS))
    args = [positions, seq_lens, state.slots, state.query_start, state.computed, SLOTS, 32]
    return Launch(args, (state.num_reqs + 1,), [positions, seq_lens])


def combine(state: State, num_new: int) -> Launch:
    rng = state.rng
    num_logits = np.minimum(rng.integers(0, DRAFTS + num_new + 1, state.num_reqs), state.query_lens)
    rows = state.cumulative(num_logits)
    seq_lens = state.ints(rng.integers(1, MAX_LEN, SLOTS))
    drafts = state.ints(rng.integers(0, VOCAB, (SLOTS, DRAFTS)), torch.int64)
    last = state.ints(rng.integers(0, VOCAB, (SLOTS, 1)), torch.int64)
    indices = torch.full((int(num_logits.sum()),), -7, dtype=torch.int64)
    args = [
        state.input_ids,
        state.slots,
        last,
        state.query_start,
        seq_lens,
        state.prefill,
        drafts,
        drafts.stride(0),
        rows,
        indices,
        32,
        num_new,
    ]
    return Launch(args, (state.num_reqs,), [state.input_ids, indices])


def expand(state: State) -> Launch:
    rows = state.cumulative(state.query_lens)
    slots = torch.full((state.num_tokens,), -7, dtype=torch.int32)
    local = torch.full((state.num_tokens,), -7, dtype=torch.int32)
    return Launch([state.slots, slots, local, rows, 64], (state.num_reqs,), [slots, local])


def post(state: State, counts: bool, queries: bool, skip: bool) -> Launch:
    rng, width = state.rng, 9
    if skip and state.num_reqs > 1:
        state.slots[int(rng.integers(state.num_reqs))] = -1
    last = state.ints(rng.integers(0, VOCAB, (SLOTS, 1)), torch.int64)
    bins = state.ints(rng.integers(0, 3, (SLOTS, VOCAB))) if counts else None
    sampled = state.ints(rng.integers(0, 4, (state.num_reqs, width)))  # repeats: bins add up
    num_sampled = state.ints(rng.integers(0, width + 1, state.num_reqs))
    num_rejected = state.ints(rng.integers(-5, 12, state.num_reqs))  # negative: moved forward
    total = state.ints(rng.integers(0, MAX_LEN - width, SLOTS))
    args = [
        state.slots,
        state.computed,
        last,
        bins,
        bins.stride(0) if bins is not None else 0,
        sampled,
        width,
        num_sampled,
        num_rejected,
        state.query_start if queries else None,
        state.all_ids,
        state.all_ids.stride(0),
        total,
    ]
    written = [state.computed, last, state.all_ids, total] + ([] if bins is None else [bins])
    if takes("post_update", "draft_tokens_ptr"):
        filed = state.ints(rng.integers(0, VOCAB, (SLOTS, DRAFTS)), torch.int64)
        drafts = state.ints(rng.integers(0, VOCAB, (state.num_reqs, DRAFTS)), torch.int64)
        args += [drafts, filed, DRAFTS] if queries else [None, None, 0]
        written.append(filed)
    return Launch(args, (state.num_reqs,), written, {"num_warps": 1})


def addresses(tables: list[torch.Tensor]) -> torch.Tensor:
    return torch.tensor([t.data_ptr() for t in tables], dtype=torch.uint64)


def strides(tables: list[torch.Tensor]) -> torch.Tensor:
    return torch.tensor([t.stride(0) for t in tables], dtype=torch.int64)


def block_tables(state: State, widths: tuple[int, ...]) -> list[torch.Tensor]:
    return [state.ints(state.rng.integers(0, 500, (SLOTS, width))) for width in widths]


def gather(state: State, widths: tuple[int, ...]) -> Launch:
    source, target = block_tables(state, widths), block_tables(state, widths)
    counts = np.stack([state.rng.integers(0, width + 1, SLOTS) for width in widths])
    num_blocks = state.ints(counts)
    args = [
        state.slots,
        addresses(source),
        addresses(target),
        strides(source),
        num_blocks,
        num_blocks.stride(0),
        state.num_reqs,
    ]
    if takes("gather_block_tables", "MASK_SLIDING_WINDOW"):
        reaches = state.ints([0, 9, 40][: len(widths)] if len(widths) > 1 else [11])
        sizes = state.ints([1 + state.rng.integers(4) for _ in widths])
        args += [state.computed, reaches, sizes, bool(state.rng.integers(3))]
    args.append(16)
    # Only addresses are passed: `written` keeps the targets alive, and the sources with them.
    return Launch(args, (len(widths), state.num_reqs), [*target, *source])


def slot_mappings(state: State, widths: tuple[int, ...], enabled: list[bool], skip: bool) -> Launch:
    tables = block_tables(state, widths)
    if skip and state.num_reqs > 1:
        state.slots[int(state.rng.integers(state.num_reqs))] = -1
    sizes = [-(-MAX_LEN // width) for width in widths]
    positions = state.ints(state.rng.integers(0, MAX_LEN, state.num_tokens + 7), torch.int64)
    width = state.num_tokens + 40
    mappings = state.ints(state.rng.integers(0, 9, (len(widths), width)), torch.int64)
    args = [
        width,
        state.slots,
        state.query_start,
        positions,
        addresses(tables),
        strides(tables),
        state.ints(sizes),
        torch.tensor(enabled),
        torch.tensor([False] * len(widths)),
        mappings,
        mappings.stride(0),
        0,
        1,
        1,
        PAD,
        32,
    ]
    return Launch(args, (len(widths), state.num_reqs + 1), [mappings, *tables])


def staged_writes(state: State, shape: tuple[int, ...], dtype: torch.dtype) -> Launch:
    """Writes to one table; later ones may hit what earlier ones wrote."""
    rng, num_writes = state.rng, state.num_reqs
    width = shape[1] if len(shape) > 1 else 1
    table = state.ints(rng.integers(0, 9, shape), dtype)
    lens = rng.integers(1, width + 1, num_writes)
    starts = state.ints([int(rng.integers(0, width - n + 1)) for n in lens])
    contents = state.ints(rng.integers(10, 99, int(lens.sum())), dtype)
    args = [
        table,
        table.stride(0),
        state.ints(rng.integers(0, shape[0], num_writes)),
        starts,
        contents,
        state.ints(np.cumsum(lens)),
        None,
        16,
        False,
    ]
    return Launch(args, write_grid(num_writes, lens), [table])


def grouped_writes(state: State, widths: tuple[int, ...]) -> Launch:
    rng, num_writes = state.rng, state.num_reqs
    tables = block_tables(state, widths)
    groups = rng.integers(0, len(widths), num_writes)
    lens = np.array([rng.integers(1, widths[g] + 1) for g in groups], dtype=np.int64)
    starts = [int(rng.integers(0, widths[g] - n + 1)) for g, n in zip(groups, lens, strict=True)]
    args = [
        addresses(tables),
        strides(tables),
        state.ints(rng.integers(0, SLOTS, num_writes)),
        state.ints(np.array(starts, dtype=np.int64)),
        state.ints(rng.integers(1000, 2000, int(lens.sum()))),
        state.ints(np.cumsum(lens)),
        state.ints(groups),
        16,
        True,
    ]
    return Launch(args, write_grid(num_writes, lens), tables)


def write_grid(num_writes: int, lens: np.ndarray) -> tuple[int, int]:
    """0.33 launches a program for each block of 16; 0.32's programs loop, and here do so again."""
    return num_writes, -(-int(lens.max(initial=1)) // 16)


CASES: list[tuple[str, str, Callable[[State], Launch]]] = [
    ("prepare_prefill_inputs", "", prefill_inputs),
    ("prepare_pos_seq_lens", "", pos_seq_lens),
    ("combine_sampled_and_draft_tokens", "diffusion", lambda s: combine(s, 0)),
    ("combine_sampled_and_draft_tokens", "one sampled", lambda s: combine(s, 1)),
    ("expand_idx_mapping", "", expand),
    ("post_update", "", lambda s: post(s, counts=False, queries=True, skip=False)),
    ("post_update", "counts", lambda s: post(s, counts=True, queries=True, skip=True)),
    ("post_update", "no queries", lambda s: post(s, counts=False, queries=False, skip=True)),
    ("gather_block_tables", "one group", lambda s: gather(s, (7,))),
    ("gather_block_tables", "three groups", lambda s: gather(s, (7, 33, 1))),
    ("compute_slot_mappings", "one group", lambda s: slot_mappings(s, (7,), [True], False)),
    (
        "compute_slot_mappings",
        "groups, one disabled, a request without slot",
        lambda s: slot_mappings(s, (7, 33, 1), [True, False, True], True),
    ),
    ("apply_write", "scalars", lambda s: staged_writes(s, (SLOTS,), torch.int32)),
    ("apply_write", "rows", lambda s: staged_writes(s, (SLOTS, 37), torch.int64)),
    ("apply_write", "floats", lambda s: staged_writes(s, (SLOTS, 5), torch.float32)),
    ("apply_write", "groups", lambda s: grouped_writes(s, (7, 33, 1))),
]


@pytest.mark.parametrize("num_reqs", BATCHES)
@pytest.mark.parametrize("kernel, variant, build", CASES, ids=[f"{k}-{v}" for k, v, _ in CASES])
def test_same_memory_as_the_kernel(
    kernel: str, variant: str, build: Callable[[State], Launch], num_reqs: int
) -> None:
    changed = False
    for seed in range(6):
        # 40 tokens are more than one of the kernels' blocks (32); 1 is a query of one token.
        max_query = (1, 7, 40)[seed % 3]
        expected, actual = (build(State(seed, num_reqs, max_query)) for _ in range(2))
        before = [t.clone() for t in expected.written]
        if all(expected.grid):
            original(KERNELS[kernel])[expected.grid](*expected.args, **expected.options)
        fitting(KERNELS[kernel])(*actual.args, **actual.options)
        for reference, ours in zip(expected.written, actual.written, strict=True):
            torch.testing.assert_close(ours, reference, rtol=0, atol=0)
        changed |= any(not torch.equal(a, b) for a, b in zip(before, actual.written, strict=True))
    # Equality of two functions that write nothing would prove nothing.
    assert changed or num_reqs == 0


def test_context_parallelism_is_refused() -> None:
    launch = slot_mappings(State(0, 3, 5), (7,), [True], False)
    launch.args[12] = 2
    with pytest.raises(ValueError, match="context parallelism over 2 ranks"):
        runner_cpu.compute_slot_mappings(*launch.args)


class TestWhatVersion33Adds:
    """Its own kernels are compared above where 0.33 is installed; here it need not be."""

    def test_drafts_are_filed(self) -> None:
        args = post(State(2, 5, 7), counts=False, queries=True, skip=True).args[:13]
        drafts = torch.arange(5 * DRAFTS).view(5, DRAFTS)
        filed = torch.full((SLOTS, DRAFTS), -7)
        runner_cpu.post_update_with_drafts(*args, drafts, filed, DRAFTS, num_warps=1)
        slots = args[0].tolist()
        assert min(slots) == -1  # one request is skipped
        for slot in range(SLOTS):
            row = drafts[slots.index(slot)] if slot in slots else torch.full((DRAFTS,), -7)
            assert torch.equal(filed[slot], row)

    def test_blocks_below_the_window_are_nulled(self) -> None:
        source = torch.arange(1, 1 + 3 * 6, dtype=torch.int32).view(3, 6)
        target = torch.full((2, 6), -7, dtype=torch.int32)
        slots, counts = torch.tensor([2, 0]).int(), torch.tensor([[6, 0, 5]]).int()
        computed = torch.tensor([3, 0, 21]).int()  # slot 2: (21 - 9) // 4 = 3 blocks are out
        tables = [addresses([source]), addresses([target]), strides([source])]
        window = [computed, torch.tensor([9]).int(), torch.tensor([4]).int(), True]
        runner_cpu.gather_block_tables_in_reach(slots, *tables, counts, 3, 2, *window, 16)
        assert target.tolist() == [[0, 0, 0, 16, 17, -7], [1, 2, 3, 4, 5, 6]]


class TestReplacing:
    """compat.replace_runner_kernels against vLLM's registry, undone afterwards."""

    @pytest.fixture(autouse=True)
    def undo(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in runner_cpu.OVERRIDES:
            module, _, attribute = name.rpartition(".")
            monkeypatch.setattr(importlib.import_module(module), attribute, original(name))
        monkeypatch.setattr(dispatcher, "_registry", {})

    def test_every_kernel_is_replaced_once(self) -> None:
        assert set(compat.replace_runner_kernels()) == set(runner_cpu.OVERRIDES)
        first = {name: entry[1] for name, entry in dispatcher._registry.items()}
        assert first == {name: fitting(name) for name in runner_cpu.OVERRIDES}
        assert set(compat.replace_runner_kernels()) == set(runner_cpu.OVERRIDES)
        for name in runner_cpu.OVERRIDES:
            module, _, attribute = name.rpartition(".")
            override = getattr(importlib.import_module(module), attribute)
            assert override.func is fitting(name)  # not a wrapper around a wrapper

    def test_vllms_own_call_reaches_the_replacement(self) -> None:
        from vllm.v1.worker.gpu.input_batch import expand_idx_mapping

        compat.replace_runner_kernels()
        slots, rows = torch.tensor([4, 2], dtype=torch.int32), torch.tensor([0, 1, 4])
        expanded, local = expand_idx_mapping(slots, 4, rows.int(), 3)
        assert (expanded.tolist(), local.tolist()) == ([4, 2, 2, 2], [0, 0, 1, 2])

    def test_a_kernel_of_another_version_stays(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def other_arguments(idx_mapping_ptr: torch.Tensor) -> None: ...

        posts = (runner_cpu.post_update, runner_cpu.post_update_with_drafts)
        overrides = {
            "vllm.v1.worker.gpu.input_batch._no_such_kernel": posts,
            "vllm.v1.worker.gpu.no_such_module._kernel": posts,
            "vllm.v1.worker.gpu.input_batch._expand_idx_mapping_kernel": (other_arguments,),
            "vllm.v1.worker.gpu.input_batch._post_update_kernel": posts,
        }
        monkeypatch.setattr(runner_cpu, "OVERRIDES", overrides)
        with caplog.at_level(logging.WARNING, logger=compat.logger.name):
            replaced = compat.replace_runner_kernels()
        assert replaced == ["vllm.v1.worker.gpu.input_batch._post_update_kernel"]
        assert [record.args[0] for record in caplog.records] == list(overrides)[:3]
