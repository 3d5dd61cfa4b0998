"""The command line finds its commands and says what is wrong."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from vllm_dynin.entrypoints import cli


def test_every_command_has_a_main() -> None:
    for module, _ in cli.COMMANDS.values():
        assert callable(importlib.import_module(module).main)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_every_command(arguments, capsys) -> None:
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in cli.COMMANDS)


def test_unknown_command(capsys) -> None:
    assert cli.main(["dmeo"]) == 2
    assert "did you mean demo?" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_command(name, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pytest"])
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, "--help"])
    assert stopped.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_help_needs_neither_torch_nor_vllm() -> None:
    code = (
        "import sys; from vllm_dynin.entrypoints.cli import main; main(['--help'])\n"
        "assert not {'torch', 'vllm', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
