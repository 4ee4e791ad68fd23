"""schemathesis reads the published document and sends what it allows, and what it does not."""

from __future__ import annotations

from collections.abc import Callable

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from fakes.server import RunningServer

EXAMPLES = 12


def test_the_document_is_kept(server: RunningServer) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    seen: list[str] = []

    def checking(path: str) -> Callable[[schemathesis.Case], None]:
        def check(case: schemathesis.Case) -> None:
            if isinstance(case.body, dict):
                case.body["max_tokens"] = 1  # an answer that is allowed need not be long
                case.body.pop("max_completion_tokens", None)
                case.body["n"] = 1
            answer = case.call(timeout=60)
            seen.append(f"{path} {answer.status_code}")
            assert answer.status_code < 500, answer.text
            if answer.status_code >= 400:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

        return check

    few = settings(
        max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate], derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    for found in schema.get_all_operations():
        operation = found.ok()
        few(given(case=operation.as_strategy())(checking(operation.path)))()
    asked = {line.split()[0] for line in seen}
    assert asked >= {"/v1/chat/completions", "/v1/completions", "/tokenize", "/v1/models", "/metrics"}
    assert len(seen) > 3 * EXAMPLES / 2
    server.idle()
