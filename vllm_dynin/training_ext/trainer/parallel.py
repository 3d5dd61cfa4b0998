"""Processes and devices: one process, DDP, FSDP2, or DeepSpeed, behind one small class.

accelerate starts the processes and knows the device; its DDP and DeepSpeed wrappers are used as
they are. Sharding by FSDP2 is `torch.distributed.fsdp.fully_shard` itself, because accelerate
refuses it without a GPU, and this way what is tested on a CPU is what runs on GPUs.

Every rank gets the loss of its own rows over the denominators of all rows, so the gradient of the
step is the *sum* over micro-batches and ranks. The wrappers average over ranks and accelerate
divides by the accumulation steps; `backward` undoes both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from vllm_dynin.canvas import Task
from vllm_dynin.reference.backbone import LLaDA
from vllm_dynin.training_ext.losses import Noised, add_totals, denominators
from vllm_dynin.training_ext.trainer.config import TrainConfig
from vllm_dynin.training_ext.trainer.feed import Places, alone
from vllm_dynin.training_ext.trainer.optimiser import make_optimizer

Optimizer = torch.optim.Optimizer


class Parallel:
    """The processes of one run.

    Args:
        config: the run. What the launcher put into the environment must agree with it.

    Raises:
        ValueError: the launcher set an accumulation, clipping, precision or sharding of its own.
    """

    _made: ClassVar[dist.ProcessGroup | None] = None
    """The process group that runs of this process made."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        found = dist.group.WORLD
        self.accelerator = Accelerator(gradient_accumulation_steps=config.num_micro_batches)
        # A group that was there is somebody else's, such as that of a vLLM engine in this process.
        if dist.group.WORLD is not found:
            Parallel._made = dist.group.WORLD
        _check_launcher(self.accelerator, config)
        self._module: Any = None  # what prepare() wrapped

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.accelerator.device

    @property
    def rank(self) -> int:
        """Index of this process."""
        return self.accelerator.process_index

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.accelerator.is_main_process

    @property
    def is_deepspeed(self) -> bool:
        """Whether DeepSpeed holds weights, gradients and optimiser."""
        return self.accelerator.distributed_type == DistributedType.DEEPSPEED

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Leave the process group, if a run made it; the last thing a process does."""
        if Parallel._made is not None and dist.group.WORLD is Parallel._made:
            self.accelerator.end_training()

    # --- set-up -----------------------------------------------------------------------------------

    def prepare(self, model: LLaDA, module: nn.Module) -> tuple[nn.Module, Optimizer]:
        """Place, shard and wrap, in place.

        With `fsdp2` each block is a shard and what lies outside the blocks another. bfloat16 then
        gathers and computes in bfloat16, keeps float32 shards and reduces gradients in float32.

        Args:
            model: float32; its parameters are trained.
            module: holds the model; its forward returns the loss.

        Returns:
            The module to call, and the optimiser.
        """
        if self.config.sharding == "none":
            if not self.is_deepspeed:  # DeepSpeed moves what its stage leaves whole
                _place(model, self.device)
            optimizer = make_optimizer(model, self.config)
            self._module, optimizer = self.accelerator.prepare(module, optimizer)
            return self._module, optimizer
        if not dist.is_initialized() or self.accelerator.num_processes == 1:
            raise ValueError(
                "sharding=fsdp2 needs processes: start with `accelerate launch` or `torchrun`, or "
                "use sharding=none"
            )
        policy = MixedPrecisionPolicy()
        if self.config.precision == "bf16":
            policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16,
                reduce_dtype=torch.float32,
                cast_forward_inputs=False,  # angles of the rotary embedding stay float32
            )
        mesh = init_device_mesh(self.device.type, (self.world_size,))
        for part in (*model.model.transformer.blocks, module):
            fully_shard(part, mesh=mesh, mp_policy=policy)
        _place(model, self.device)
        self._module = module
        return module, make_optimizer(model, self.config)

    @contextmanager
    def whole_model(self) -> Iterator[None]:
        """Around calls of the model outside the wrapped module's forward, by all ranks alike.

        Raises:
            ValueError: under DeepSpeed ZeRO-3, which has no weights to call it with.
        """
        if isinstance(self._module, FSDPModule):
            # Blocks gather themselves; what lies outside them is gathered by the root's forward.
            self._module.unshard()
            try:
                yield
            finally:
                self._module.reshard()
            return
        plugin = self.accelerator.deepspeed_plugin if self.is_deepspeed else None
        if plugin is not None and plugin.zero_stage == 3:
            raise ValueError(
                "nothing can be generated under ZeRO-3; set the generated samples to 0, or use "
                "sharding=fsdp2"
            )
        yield

    # --- a step -----------------------------------------------------------------------------------

    @contextmanager
    def micro_batch(self, *, is_last: bool) -> Iterator[None]:
        """Around forward and backward of one micro-batch; gradients are reduced in the last."""
        assert self._module is not None, "prepare() comes first"
        if isinstance(self._module, FSDPModule):
            self._module.set_requires_gradient_sync(is_last)
            yield
            return
        with self.accelerator.accumulate(self._module):
            assert self.accelerator.sync_gradients == is_last
            yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss`, a sum over this rank's part of the step."""
        if isinstance(self._module, FSDPModule):
            (loss * self.world_size).backward()
            return
        self.accelerator.backward(loss * (self.world_size * self.config.num_micro_batches))

    def clip(self, model: nn.Module) -> float:
        """Scale the gradients of the step down to `max_grad_norm`.

        Returns:
            Their norm before, over all shards.
        """
        if self.is_deepspeed:  # clips in its own step, to the norm that `_check_launcher` put in
            norm = self.accelerator.clip_grad_norm_(model.parameters(), self.config.max_grad_norm)
            return float("nan") if norm is None else float(norm)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), self.config.max_grad_norm)
        return float(whole(norm))

    def full_weight(self, weight: Tensor) -> Tensor:
        """A float32 weight in full; every rank must ask at the same time."""
        if self.is_deepspeed:  # what the module holds is bfloat16, and with ZeRO-3 nothing
            from deepspeed.utils import safe_get_full_fp32_param

            found: Tensor = safe_get_full_fp32_param(weight)
            return found
        return whole(weight.detach())

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Element-wise sum of a small CPU tensor over all processes, on the CPU."""
        if self.world_size == 1:
            return values
        total = values.to(self.device)
        dist.all_reduce(total)
        return total.cpu()

    def sum_tasks(self, noised: Sequence[Mapping[Task, Noised]]) -> dict[Task, int]:
        """Denominators of the step, over its micro-batches and all ranks.

        Raises:
            ValueError: with shards, ranks differ in the directions of a micro-batch: they would
                wait for each other for ever.
        """
        totals = add_totals(map(denominators, noised))
        if self.world_size == 1:
            return totals
        given = [sorted(part) for part in noised]
        by_rank = self.gather_objects((totals, given))
        is_one_pass = self.config.sharding == "none" or self.config.is_packed
        if not is_one_pass and any(of_rank[1] != given for of_rank in by_rank):
            raise ValueError(
                f"ranks have different directions in a micro-batch ({given} here); with shards "
                "every rank needs the same, so give each direction as many rows a step as there "
                "are processes, or pack them (is_packed=true)"
            )
        return add_totals(of_rank[0] for of_rank in by_rank)

    def place(self, counts: Mapping[Task, int], failure: str | None = None) -> Places:
        """Where this rank's rows stand among those of all ranks; see `feed.Place`."""
        if self.world_size == 1:
            return alone(counts, failure)
        found = self.gather_objects((dict(counts), failure))
        by_rank: list[Mapping[Task, int]] = [of_rank for of_rank, _ in found]
        tasks = {task for of_rank in by_rank for task in of_rank}
        return Places(
            first={task: sum(c.get(task, 0) for c in by_rank[: self.rank]) for task in tasks},
            total={task: sum(c.get(task, 0) for c in by_rank) for task in tasks},
            failures=tuple(why for _, why in found if why is not None),
        )

    def gather_objects(self, value: Any) -> list[Any]:
        """A small JSON-like value of every rank, on every rank, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


def _place(model: nn.Module, device: torch.device) -> None:
    """Move to the device; weights without values become zeros there, to be filled later."""
    if any(weight.is_meta for weight in model.parameters()):
        model.to_empty(device=device)
        with torch.no_grad():
            for weight in model.parameters():
                weight.zero_()
    else:
        model.to(device)


def whole(tensor: Tensor) -> Tensor:
    """A tensor in full, gathered if it is sharded; every rank must ask at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def fill(target: Tensor, source: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded."""
    source = source.to(device=target.device, dtype=target.dtype)
    if isinstance(target, DTensor):
        source = distribute_tensor(source, target.device_mesh, target.placements)
    target.copy_(source)


def checkpoint_activations(model: LLaDA) -> None:
    """Let every block recompute its activations in the backward pass, in place.

    Only the inputs of the blocks are then kept between the passes. The gradients are the same.
    The forward *inside* a block is replaced, so that hooks around it (FSDP2's) still run once.
    """
    from torch.utils.checkpoint import checkpoint

    def recomputed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any) -> Tensor:
            if not torch.is_grad_enabled():
                return forward(*args)
            found: Tensor = checkpoint(forward, *args, use_reentrant=False)
            return found

        return call

    for block in model.model.transformer.blocks:
        block.forward = recomputed(block.forward)


def _check_launcher(accelerator: Accelerator, config: TrainConfig) -> None:
    """Refuse what the launcher's file sets differently: `TrainConfig` is the only source."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise ValueError(
            f"{started} processes were started, but accelerate sees "
            f"{accelerator.num_processes} and each would train alone; without GPUs set "
            "ACCELERATE_USE_CPU=true"
        )
    taken = accelerator.gradient_accumulation_steps
    if taken != config.num_micro_batches:
        raise ValueError(
            f"num_micro_batches={config.num_micro_batches}, but accelerate took "
            f"gradient_accumulation_steps={taken} from its environment; remove it from the "
            "launcher's file or set num_micro_batches to it"
        )
    if accelerator.mixed_precision not in ("no", config.precision):
        raise ValueError(
            f"precision={config.precision}, but accelerate was started with mixed_precision="
            f"{accelerator.mixed_precision}; set both alike, or mixed_precision: 'no'"
        )
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise ValueError(
            "the launcher's file turns accelerate's FSDP on; sharding is set by sharding=fsdp2, "
            "start with the file multi_gpu.yaml"
        )
    plugin = accelerator.deepspeed_plugin if accelerator.distributed_type == "DEEPSPEED" else None
    if plugin is None:
        return
    if config.sharding != "none":
        raise ValueError("sharding=fsdp2 and DeepSpeed exclude each other; choose one")
    clipping = plugin.deepspeed_config.get("gradient_clipping", "auto")
    if clipping not in ("auto", config.max_grad_norm):
        raise ValueError(
            f"max_grad_norm={config.max_grad_norm}, but DeepSpeed was given gradient_clipping="
            f"{clipping}, which it would apply instead; remove it from the launcher's file"
        )
    plugin.deepspeed_config["gradient_clipping"] = config.max_grad_norm
    # Batches are made here, so accelerate cannot read their size off a loader.
    plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 1
