"""What `vllm-dynin serve` adds to the options of `vllm serve`, and our environment variables."""

from __future__ import annotations

import pytest

from vllm_dynin import envs
from vllm_dynin.entrypoints.commands.serve import SHUTDOWN_SECONDS, server_options


@pytest.mark.parametrize(
    "given",
    [
        ["model", "--shutdown-timeout", "5"],
        ["model", "--shutdown-timeout=5"],
        ["model", "--shutdown_timeout=5"],
    ],
)
def test_a_stated_time_is_kept(given):
    assert server_options(given) == given


def test_requests_are_finished_by_default():
    assert server_options(["model", "--port", "1"]) == [
        *("model", "--port", "1"),
        *("--shutdown-timeout", str(SHUTDOWN_SECONDS)),
    ]


def test_the_page_is_asked_for_by_an_option_of_ours(monkeypatch):
    monkeypatch.setenv(envs.UI, "0")
    assert "--ui" not in server_options(["model", "--ui"])
    assert envs.wants_page()


@pytest.mark.parametrize("value", ["yes", "", "2"])
def test_a_wrong_flag(monkeypatch, value):
    monkeypatch.setenv(envs.UI, value)
    with pytest.raises(ValueError, match=f"{envs.UI}={value!r}"):
        envs.wants_page()


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", ""])
def test_a_wrong_number(monkeypatch, value):
    monkeypatch.setenv(envs.MAX_BODY_MB, value)
    with pytest.raises(ValueError, match=envs.MAX_BODY_MB):
        envs.positive(envs.MAX_BODY_MB, 128)


def test_numbers(monkeypatch):
    monkeypatch.delenv(envs.MAX_BODY_MB, raising=False)
    assert envs.positive(envs.MAX_BODY_MB, 128) == 128
    monkeypatch.setenv(envs.MAX_BODY_MB, "7")
    assert envs.positive(envs.MAX_BODY_MB, 128) == 7
