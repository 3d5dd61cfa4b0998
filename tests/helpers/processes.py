"""Which tests go to one process together, where there are several (`pytest -n 2`): a plugin."""

from __future__ import annotations

from typing import Any

import pytest

SHARING = tuple(f"tests/engine/{name}/" for name in ("field", "http", "omni", "operating"))
"""Folders whose tests share a server or an engine for the whole session."""


def group(node_id: str) -> str:
    """What a test stays together with: such a folder, or else its file.

    Args:
        node_id: of the test, relative to the repository.
    """
    path = node_id.partition("::")[0]
    return next((folder for folder in SHARING if path.startswith(folder)), path)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give out whole groups."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid)

    return Groups(config, log)
