"""Every refusal of the package, on every route that can meet it: a 4xx with its own words."""

import json

import pytest
from helpers.refusals import CASES

from vllm_dynin import generate


def answered(http, ask):
    if ask.files is None:
        return http.post(ask.path, json=ask.body)
    return http.post(ask.path, data=ask.body, files=ask.files)


def refusal_in(answer):
    """Status and message of an answer; vLLM's streams refuse in their first event."""
    if answer.headers["content-type"].startswith("text/event-stream"):
        error = answer.text.split("data: ")[1]
        assert '"error"' in error, error[:300]
        found = json.loads(error)["error"]
        return found["code"], found["message"]
    body = answer.json()
    return answer.status_code, (body.get("error") or {}).get("message", "")


@pytest.mark.parametrize("case", [case for case in CASES if case.http], ids=lambda case: case.name)
def test_over_http(routes, case):
    wrong = []
    with routes.client() as http:
        for route, ask in case.http.items():
            answer = answered(http, ask)
            if answer.status_code == 200 and "event-stream" not in answer.headers["content-type"]:
                wrong.append(f"{route}: 200 {answer.content[:100]!r}")
                continue
            status, message = refusal_in(answer)
            if not 400 <= status < 500 or case.words.strip() not in message:
                wrong.append(f"{route}: {status} {message[:300]}")
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
