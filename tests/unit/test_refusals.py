"""Every raise site of what prepares requests is tried over HTTP, or says why it cannot be met."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="the table names requests of the server")

from helpers.raise_sites import NOT_MET, sites
from helpers.refusals import CASES


def reason_of(site):
    return next(
        (why for path, words, why in NOT_MET if site.path.startswith(path) and words in site.text),
        None,
    )


def test_every_raise_site_is_in_the_table():
    missing = [
        str(site)
        for site in sites()
        if reason_of(site) is None and not any(case.at in site.text for case in CASES)
    ]
    assert not missing, "\n".join(["add these to tests/helpers/refusals.py:", *missing])


def test_nothing_in_the_table_is_gone():
    found = list(sites())
    for case in CASES:
        assert any(case.at in site.text for site in found), case.name
    for path, words, _ in NOT_MET:
        assert any(site.path.startswith(path) and words in site.text for site in found), (
            path,
            words,
        )
