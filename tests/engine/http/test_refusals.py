"""Every refusal of the package, on every route that can meet it: a 4xx with its own words."""

import json

import pytest
from helpers.refusals import CASES

from vllm_dynin import generate


def answered(http, ask):
    if ask.files is None:
        # Not `json=`, which writes UTF-8: half a character has none.
        body = json.dumps(ask.body)
        return http.post(ask.path, content=body, headers={"content-type": "application/json"})
    return http.post(ask.path, data=ask.body, files=ask.files)


@pytest.mark.parametrize("case", [case for case in CASES if case.http], ids=lambda case: case.name)
def test_over_http(routes, case):
    wrong = []
    with routes.client() as http:
        for route, ask in case.http.items():
            answer = answered(http, ask)
            is_refused = 400 <= answer.status_code < 500
            if not is_refused or case.words.strip() not in answer.json()["error"]["message"]:
                wrong.append(f"{route}: {answer.status_code} {answer.content[:300]!r}")
        assert http.get("/health").status_code == 200
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.python is not tuple], ids=lambda case: case.name
)
def test_in_python(local, case):
    wrong = []
    try:
        requests = case.python()
    except ValueError as error:
        assert case.words.strip() in str(error)
        return
    for request in requests:
        try:
            generate(local, [request], use_tqdm=False)
            wrong.append(f"{type(request).__name__}: answered")
        except (ValueError, TypeError) as error:
            if case.words.strip() not in str(error):
                wrong.append(f"{type(request).__name__}: {error}")
    assert not wrong, "\n".join(wrong)
