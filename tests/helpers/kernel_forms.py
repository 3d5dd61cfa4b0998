"""Forms of a kernel as parameters of a test: interpreted on a CPU, compiled on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch

HAS_GPU = torch.cuda.is_available()


def triton_forms(function: Callable[..., Any]) -> list[Any]:
    """The Triton form of a kernel: in the interpreter, or with the marker `gpu` on a GPU.

    Args:
        function: takes tensors and dataclasses of tensors, and may write them.
    """
    return [
        pytest.param(
            function,
            id="interpreted",
            marks=pytest.mark.skipif(HAS_GPU, reason="Triton compiles for the GPU in this process"),
        ),
        gpu_form(function),
    ]


def gpu_form(function: Callable[..., Any], **options: Any) -> Any:
    """A form that runs on a GPU, with the marker; called with tensors on the CPU."""
    marks = [
        pytest.mark.gpu,
        pytest.mark.skipif(not HAS_GPU, reason="no CUDA device on this machine"),
    ]
    return pytest.param(on_gpu(function), id="cuda", marks=marks, **options)


def on_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """Call with copies on the GPU; what the function writes and returns comes back."""

    def call(*arguments: Any, **options: Any) -> Any:
        pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

        def there(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                pairs.append((value, value.to("cuda")))
                return pairs[-1][1]
            if is_dataclass(value) and not isinstance(value, type):
                return replace(
                    value, **{f.name: there(getattr(value, f.name)) for f in fields(value)}
                )
            return value

        found = function(*map(there, arguments), **options)
        for original, copy in pairs:
            if not torch.equal(original, copy.cpu()):
                original.copy_(copy)
        return back(found)

    def back(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.cpu()
        if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{f.name: back(getattr(value, f.name)) for f in fields(value)})
        return value

    call.__name__ = function.__name__
    return call
