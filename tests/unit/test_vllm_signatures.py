"""Overrides and uses of vLLM's internals fit both supported versions (packaging/compat/).

The digest stands for the sources of the versions that are not installed. Where vLLM is installed,
its sources are read too, so that a digest that is out of date cannot pass.
"""

from __future__ import annotations

import ast
import dataclasses

import pytest
import signatures
import touched
from vllm_sources import read, signature, written


@pytest.fixture(scope="module")
def found() -> touched.Touched:
    return signatures.all_touched()


def test_everything_fits_the_supported_versions(found) -> None:
    versions = signatures.recorded()
    assert tuple(versions) == signatures.SUPPORTED
    assert len(found.symbols) > 200 and len(found.derived) > 10 and len(found.calls) > 60
    assert signatures.problems(found, versions) == []


def test_the_digest_is_what_the_installed_version_says(found) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed: its sources are compared")
    sources = signatures.installed()
    assert sources is not None
    says = signatures.facts(found, sources)
    kept = signatures.recorded()[sources.version]
    for kind, entries in says.items():
        for name, entry in entries.items():
            renew = f"{name}: python packaging/compat/signatures.py renew …"
            assert kept[kind].get(name) == entry, renew


def parameters(text: str):
    (function,) = ast.parse(f"def f({text}): ...").body
    return signature(function)


@pytest.mark.parametrize(
    "text", ["", "self, a, b=", "a, *args, k, j=, **kw", "*, k", "**kw", "self, *args"]
)
def test_signatures_are_written_and_read(text) -> None:
    assert written(read(text)) == text


@pytest.mark.parametrize(
    ("ours", "theirs", "why"),
    [
        ("self, a", "self, a", None),
        ("self, a, b=0", "self, a", None),
        ("self, *args, **kwargs", "self, a, *, b", None),
        ("self, a", "self, a, b", "ours takes no b"),
        ("self, a", "self, a, b=0", "ours takes no b"),
        ("self, a", "self, a, *, decoded_budget=None", "ours takes no decoded_budget"),
        ("self, *args", "self, a", "ours takes no a"),  # it may be passed by its name
        ("self, b, a", "self, a, b", "ours has b where theirs has a"),
        ("self, a, b", "self, a, b=0", "b may be left out of theirs"),
        ("self, a, b", "self, a", "ours wants b, which is not passed"),
        ("self, a, *, b", "self, a", "ours wants b, which is not passed"),
        ("self, a", "self, a, **kwargs", "theirs takes any keyword"),
    ],
)
def test_what_does_not_fit_is_told(ours, theirs, why) -> None:
    assert signatures.unfit(parameters(ours), parameters(theirs)) == why


@pytest.mark.parametrize(
    ("takes", "positional", "keywords", "why"),
    [
        ("a, b=", 1, ["b"], None),
        ("a, *, b", 1, ["b"], None),
        ("a", 2, [], "2 arguments by position, it takes 1"),
        ("a, b", 1, ["c"], "it takes no c"),
        ("a, b", 1, [], "it wants b too"),
        ("self, a", 1, [], None),
    ],
)
def test_calls_that_do_not_fit_are_told(takes, positional, keywords, why) -> None:
    call = touched.Call("vllm.f", "here:1", positional, keywords, False)
    known = {"symbols": {"vllm.f": {"kind": "function", "call": takes}}}
    lines = signatures._calls(touched.Touched(calls=[call]), known)
    assert lines == ([] if why is None else [f"vllm.f as called in here:1: {why}"])


def test_what_a_version_lacks_is_told(found) -> None:
    """Taken out of the digest one after the other: each is missed."""
    known = signatures.recorded()["0.33"]
    symbol = "vllm.v1.worker.gpu.attn_utils.build_attn_metadata"
    member = known["members"]["vllm.v1.core.sched.scheduler.Scheduler"]
    kernel = "vllm.v1.worker.gpu.input_batch._post_update_kernel"
    less = known | {
        "symbols": known["symbols"] | {symbol: None},
        "members": known["members"]
        | {
            "vllm.v1.core.sched.scheduler.Scheduler": member
            | {"running": None, "schedule": member["schedule"] | {"call": "self, window"}}
        },
        "kernels": known["kernels"] | {kernel: {"arguments": ["idx_mapping_ptr"], "body": ""}},
    }
    lines = signatures.problems(found, {"0.33": less})
    for text in (symbol, "has no running", "where theirs has window", "no replacement of"):
        assert any(text in line for line in lines), text
    gone = known | {
        "members": known["members"]
        | {"vllm.v1.core.sched.scheduler.Scheduler": member | {"_preempt_request": None}}
    }
    lines = signatures.problems(found, {"0.32": known, "0.33": gone})
    assert any("_preempt_request" in line and "no such method in 0.33" in line for line in lines)


def test_a_new_touch_is_not_silently_unchecked(found) -> None:
    more = dataclasses.replace(found, symbols=found.symbols | {"vllm.new.thing": "here:1"})
    lines = signatures.problems(more, signatures.recorded())
    assert "vLLM 0.33: vllm.new.thing (here:1) is not in the digest; renew it" in lines


def test_attributes_of_annotated_parameters_are_seen() -> None:
    module = touched._Module(
        touched.Touched(),
        "ours",
        ast.parse(
            "from vllm.config import VllmConfig\n"
            "def f(config: 'VllmConfig | None', other: int):\n"
            "    model, x = config.model_config, other.thing\n"
            "    config = 3\n"
            "    return model.max_model_len, config.gone\n"
        ),
    )
    module.read()
    assert list(module.found.symbols) == [
        "vllm.config.VllmConfig",
        "vllm.config.VllmConfig.model_config",
        "vllm.config.VllmConfig.model_config.max_model_len",
    ]
