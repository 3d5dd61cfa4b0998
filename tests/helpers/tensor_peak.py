"""The most bytes that tensors took at once, on any device: every operation's results counted."""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorPeak(TorchDispatchMode):
    """Around code that is to be measured; what was there before does not count.

    `most` is the peak in bytes, `largest` the most elements of one new tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.most, self.largest = 0, 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._known: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor):
                reference = StorageWeakRef(leaf.untyped_storage())
                if reference.cdata not in self._alive:
                    self._known[reference.cdata] = reference
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf)
        return result

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        known = self._known.get(reference.cdata)
        if known is not None and not known.expired():
            return
        self._alive = {k: v for k, v in self._alive.items() if not v[0].expired()}
        if reference.cdata not in self._alive:
            self._alive[reference.cdata] = (reference, storage.nbytes())
            self.largest = max(self.largest, tensor.numel())
        self.most = max(self.most, sum(size for _, size in self._alive.values()))
