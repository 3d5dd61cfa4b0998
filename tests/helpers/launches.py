"""What a denoising step asks of the device outside the forward, counted where there is no GPU.

Every PyTorch operation that would launch something on a GPU is seen by a dispatch mode. A kernel of
ours is one launch on a GPU and many operations in its plain form, so calls of those count as one.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vllm import LLM

from vllm_dynin.sampling import batched

KERNELS = ("row_statistics", "unmask")
"""Functions of `sampling.batched` behind each of which stands one kernel."""

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "unique", "equal")
"""Operations that make the host wait for the device, or read pageable memory while it waits."""


@dataclass
class Step:
    """What one engine step did outside the transformer.

    Args:
        requests: names of the requests that denoised.
        own: operations of this project's code.
        others: those of vLLM's runner.
        num_committed: tokens that became final.
        num_bytes: of all tensors that were alive after it.
    """

    requests: tuple[str, ...]
    own: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    num_committed: int = 0
    num_bytes: int = 0


class Launches(TorchDispatchMode):
    """Counts operations that are not views, but inside what is being skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.skipping = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if not self.skipping and not _is_view(func) and name not in ("detach", "empty"):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))

    def take(self) -> Counter[str]:
        """The counts since the last call."""
        found, self.found = self.found, Counter()
        return found

    def skipped(self, function: Callable[..., Any], name: str | None = None) -> Callable[..., Any]:
        """The same function; what it does counts as one launch of that name, or not at all."""

        def quiet(*args: Any, **kwargs: Any) -> Any:
            if name is not None and not self.skipping:
                self.found[name] += 1
            self.skipping += 1
            try:
                return function(*args, **kwargs)
            finally:
                self.skipping -= 1

        return quiet


def _is_view(func: Any) -> bool:
    """Whether an operation only gives another view of its argument."""
    returned = [value.alias_info for value in func._schema.returns]
    return bool(returned) and all(info is not None and not info.is_write for info in returned)


def _tensor_bytes() -> int:
    """Bytes of the storages of all tensors that are alive."""
    gc.collect()
    sizes = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


@contextmanager
def counted_steps(llm: LLM, *, measures_memory: bool = False) -> Iterator[list[Step]]:
    """Steps of an engine in this process in which requests denoise, and nothing else is done.

    Args:
        llm: of `start_llm`.
        measures_memory: whether to add up tensors after each step, which takes a while.
    """
    core = llm.llm_engine.engine_core.engine_core
    runner = core.model_executor.driver_worker.worker.model_runner
    state, transformer = runner.model_state, runner.model.transformer
    launches, steps = Launches(), list[Step]()
    restore: list[Callable[[], None]] = []
    current: list[Step] = []

    def patch(owner: Any, name: str, replacement: Any) -> None:
        original = owner.__dict__.get(name)
        setattr(owner, name, replacement)
        restore.append(
            (lambda: setattr(owner, name, original))
            if original is not None
            else (lambda: delattr(owner, name))
        )

    def own(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            others = launches.take()
            try:
                return original(*args, **kwargs)
            finally:
                found = launches.take()
                for step in current:
                    step.own += found
                    step.others += others

        patch(owner, name, counting)

    for name in ("prepare_attn", "prepare_inputs"):
        own(state, name)
    own(runner.model, "compute_logits")
    sampler = runner.sampler
    call = type(sampler).__call__

    def sample(self: Any, *args: Any, **kwargs: Any) -> Any:
        others = launches.take()
        output = call(self, *args, **kwargs)
        found = launches.take()
        for step in current:
            step.own += found
            step.others += others
            step.num_committed = int(output.num_sampled.sum())
        return output

    patch(type(sampler), "__call__", sample)
    patch(transformer, "forward", launches.skipped(transformer.forward))
    for name in KERNELS:
        patch(batched, name, launches.skipped(getattr(batched, name), name))

    execute = runner.execute_model

    def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        drafts = scheduler_output.scheduled_spec_decode_tokens
        is_pure = len(drafts) == len(scheduler_output.num_scheduled_tokens) > 0
        current[:] = [Step(tuple(drafts))] if is_pure else []
        launches.take()
        return execute(scheduler_output, *args, **kwargs)

    sample_tokens = runner.sample_tokens

    def finish(*args: Any, **kwargs: Any) -> Any:
        output = sample_tokens(*args, **kwargs)
        others = launches.take()
        for step in current:
            step.others += others
            step.num_bytes = _tensor_bytes() if measures_memory else 0
            steps.append(step)
        current.clear()
        return output

    patch(runner, "execute_model", execute_model)
    patch(runner, "sample_tokens", finish)
    with launches:
        try:
            yield steps
        finally:
            for undo in reversed(restore):
                undo()
