"""Bad input gets a 4xx in OpenAI's shape that names the field, and nothing of it is left in the engine."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.server.conftest import load

from fakes.server import RunningServer
from wellhead.engine.llm import LLM
from wellhead.model.checkpoint import resolve_model
from wellhead.server.limits import Limits
from wellhead.server.prepare import Preparer

USER = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert list(body) == ["error"] and set(body["error"]) == {"message", "type", "param", "code"}, body
    assert response.headers["content-type"] == "application/json"
    assert "access-control-allow-origin" not in response.headers
    return body["error"]


@pytest.fixture(autouse=True)
def nothing_left(server: RunningServer) -> Iterator[None]:
    yield
    server.idle()


def schema(value: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}}


def tool(parameters: Any = None, **more: Any) -> dict[str, Any]:
    function = {"name": "f", **({} if parameters is None else {"parameters": parameters})}
    return {"tools": [{"type": "function", "function": function}], **more}


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": "hello"}, "messages", "valid list"),
        ({"messages": [5]}, "messages.0", "valid dictionary"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role", "'king'"),
        ({"messages": [{"role": "user"}]}, "messages", "content of a user message is missing"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type", "'text'"),
        ({"messages": [{"role": "user", "content": "x", "contnet": 1}]}, "messages.0.contnet", "unrecognized field"),
        ({"messages": [{"role": "tool", "content": "x", "tool_calls": []}]}, None, None),
        ({"messages": [{"role": "user", "content": "x" * 9000}]}, "messages", "4095 at most"),
        ({"temperatur": 1}, "temperatur", "unrecognized field"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": True}, "temperature", "valid number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 129}, "n", "less than or equal to 128"),
        ({"n": 100}, "n", "takes 72 at most"),
        ({"n": 1.5}, "n", "valid integer"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 10**30}, "max_tokens", "less than or equal to"),
        ({"max_tokens": 5000}, "max_tokens", "can be 40"),
        ({"max_completion_tokens": 3}, "max_tokens", "give one"),
        ({"stop": ["a"] * 17}, "stop", "at most 16"),
        ({"stop": [""]}, "stop.0", "at least 1"),
        ({"stop": "x" * 1025}, "stop", "at most 1024"),
        ({"seed": 2**64}, "seed", "less than or equal to"),
        ({"logit_bias": {"3072": 1}}, "logit_bias", "'0' to '3071'"),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "no token id"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "less than or equal to 100"),
        ({"logit_bias": [1]}, "logit_bias", "valid dictionary"),
        ({"top_logprobs": 3}, "top_logprobs", "without logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"logprobs": True, "top_logprobs": 20, "n": 64, "max_tokens": 800}, "max_tokens", "can be 780"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "without stream"),
        ({"stream": "yes"}, "stream", "valid boolean"),
        ({"functions": []}, "functions", "unrecognized field"),
        ({"modalities": ["audio"]}, "modalities.0", "'text'"),
        ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
        ({"tool_choice": "always"}, "tool_choice", "'required'"),
        (tool(tool_choice={"type": "function", "function": {"name": "g"}}), "tool_choice.function.name", "'g'"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "pattern"),
        (tool({"properties": [1]}, tool_choice="required"), "tools.0.function.parameters", "`properties`"),
        (tool({"properties": {'"><x': {}}}, tool_choice="required"), None, "is no name"),
        (tool({"properties": {"a": {"type": "foo"}}}, tool_choice="required"), "tools", "cannot be used"),
        (tool(tool_choice="required") | schema({}), "response_format", "contradicts"),
        ({"response_format": {"type": "json"}}, "response_format", "'json_schema'"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
        (schema({"type": "foo"}), "response_format.json_schema.schema", "foo"),
        (schema({"$ref": "#"}), "response_format.json_schema.schema", "cannot be used"),
        (schema({"$ref": "http://localhost/x"}), "response_format.json_schema.schema", "cannot be used"),
        (schema({"enum": ["x" * 70000]}), "response_format.json_schema.schema", "at most 65536"),
        (schema({"type": "string", "pattern": "(" * 500}), "response_format.json_schema.schema", "cannot be used"),
        ({**schema({}), "ignore_eos": True}, "ignore_eos", "ends where the grammar does"),
        ({"thinking": {"type": "enabled"}, "reasoning_effort": "none"}, "reasoning_effort", "contradicts"),
        ({"user": "\ud800"}, "user", "lone surrogate"),
    ],
)  # fmt: skip
def test_a_chat_that_cannot_be(server: RunningServer, change: Any, param: str | None, words: str | None) -> None:
    response = server.client.post(
        CHAT, content=json.dumps({**USER, **change}), headers={"Content-Type": "application/json"}
    )
    if words is None:
        assert response.status_code == 200
        return
    assert response.status_code == 400, response.text
    error = error_of(response)
    assert error["type"] == "invalid_request_error" and words in error["message"], error
    assert param is None or error["param"] == param
    assert len(response.content) < 1200


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "prompt", "missing"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": []}, "prompt", "empty"),
        ({"prompt": [[]]}, "prompt", "empty"),
        ({"prompt": [5, 3072]}, "prompt", "expected 0 to 3071"),
        ({"prompt": [5, -1]}, "prompt.1", "greater than or equal to 0"),
        ({"prompt": [5, "a"]}, "prompt.1", None),
        ({"prompt": [[5], [6, 2**40]]}, "prompt.1.1", "less than or equal to"),
        ({"prompt": [5] * 4096}, "prompt", "4095 at most"),
        ({"prompt": ["a"] * 129}, "prompt", "at most 128"),
        ({"prompt": "a", "best_of": 3}, "best_of", "not supported"),
        ({"prompt": "a", "echo": True}, "echo", None),
        ({"prompt": "a", "suffix": "b"}, "suffix", None),
        ({"prompt": "a", "logprobs": 21}, "logprobs", "less than or equal to 20"),
        ({"prompt": ["a"] * 60, "logprobs": 20, "max_tokens": 1000}, "max_tokens", "at most 1048576 fit"),
        ({"prompt": ["a"] * 80}, "n", "takes 72 at most"),
        ({"prompt": [[[5]]]}, None, None),
    ],
)
def test_a_completion_that_cannot_be(server: RunningServer, body: Any, param: str | None, words: str | None) -> None:
    response = server.client.post(PLAIN, json=body)
    assert response.status_code == 400, response.text
    error = error_of(response)
    assert (words or "") in error["message"], error
    assert param is None or error["param"] == param


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "missing_required_parameter"),
        (b"{", 400, "invalid_json"),
        (b"\xff\xfe\x00", 400, None),
        (b'{"messages": "\xff"}', 400, None),
        (b"[" * 100_000, 400, None),
        (b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400, None),
        (b'{"a":' * 3000 + b"1" + b"}" * 3000, 400, None),
        (b"null", 400, None),
        (b"NaN", 400, None),
        (b'{"prompt": "a", "temperature": NaN}', 400, None),
        (b'{"prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}", 400, None),
        (b'{"prompt": [' + b"[]," * 300_000 + b"1]}", 400, None),
        (b"{" + b",".join(b'"f%d":1' % i for i in range(80_000)) + b"}", 400, "unknown_parameter"),
        (b" " * (1 << 20), 400, "invalid_json"),
        (b" " * ((1 << 20) + 1), 413, "body_too_large"),
    ],
)
def test_a_body_that_cannot_be(server: RunningServer, content: bytes, status: int, code: str | None) -> None:
    response = server.client.post(PLAIN, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    assert code in (None, error_of(response)["code"])


def test_content_types_methods_and_paths(server: RunningServer) -> None:
    post = server.client.post
    text = json.dumps(USER)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", ""):
        refused = post(CHAT, content=text, headers={"Content-Type": kind})
        assert refused.status_code == 415 and "application/json" in error_of(refused)["message"]
    assert post(CHAT, content=text, headers={"Content-Type": "Application/JSON; charset=UTF-8"}).status_code == 200
    assert error_of(server.client.get(CHAT))["message"].startswith("GET is not possible")
    assert server.client.get(CHAT).status_code == 405
    assert server.client.get("/v2").status_code == 404 and error_of(server.client.get("/v2"))["code"] is None
    asked = server.client.options(CHAT, headers={"Origin": "http://evil.example"})
    assert asked.status_code == 405 and not [name for name in asked.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::2]:80", "10.0.0.1"]
)
def test_another_name_for_this_machine_is_refused(server: RunningServer, host: str) -> None:
    refused = server.client.get("/v1/models", headers={"Host": host})
    assert refused.status_code == 403 and error_of(refused)["code"] == "host_not_allowed"


def test_names_of_this_machine(server: RunningServer) -> None:
    for host in ("localhost", "localhost:1", "127.0.0.1:8000", "[::1]:8000", "LocalHost"):
        assert server.client.get("/v1/models", headers={"Host": host}).status_code == 200


def test_tokenize(server: RunningServer) -> None:
    ids = server.llm.encode("15 + 27 =")
    found = server.client.post("/tokenize", json={"prompt": "15 + 27 ="}).json()
    assert found == {"count": len(ids), "max_model_len": 4096, "tokens": ids}
    bare = server.client.post("/tokenize", json={"prompt": "15 + 27 =", "add_special_tokens": False}).json()
    assert bare["tokens"] == ids[1:]
    chat = server.client.post("/tokenize", json={"messages": USER["messages"]}).json()
    assert chat["tokens"][0] == ids[0] and chat["count"] > 3
    assert server.client.post("/tokenize", json={}).status_code == 400


def test_a_model_by_its_id(server: RunningServer) -> None:
    for path in ("org/other", "org%2Fother"):
        assert server.client.get(f"/v1/models/{path}").json()["id"] == "org/other"
    for path in ("other", "org", "org/other/", "%00", "\u96e8", "x" * 5000):
        response = server.client.get(f"/v1/models/{path}")
        assert response.status_code == 404 and error_of(response)["code"] == "model_not_found"
    assert len(server.client.get("/v1/models/").json()["data"]) == 2


def test_metrics(server: RunningServer) -> None:
    server.chat()
    text = server.client.get("/metrics").text
    for name in (
        "wellhead_time_to_first_token_seconds_count", "wellhead_time_per_output_token_seconds_sum",
        "wellhead_requests_waiting 0.0", 'wellhead_pages{state="used"} 0.0', "wellhead_prefix_hit_tokens_total",
        "wellhead_accepted_draft_tokens_total", 'wellhead_finished_total{reason="stop"}',
        'wellhead_http_responses_total{route="/v1/chat/completions",status="200"}',
    ):  # fmt: skip
        assert name in text, name


def test_the_document_names_every_route(server: RunningServer) -> None:
    document = server.client.get("/openapi.json").json()
    routes = {CHAT, PLAIN, "/v1/models", "/v1/models/{model}", "/tokenize", "/health", "/ready", "/metrics"}
    assert routes <= set(document["paths"])
    assert "messages" in document["components"]["schemas"]["Chat"]["required"]


@pytest.fixture(scope="module")
def narrow() -> Iterator[RunningServer]:
    """A server with a key and small limits."""
    running = RunningServer(
        load, key="s3cret", limits=Limits(queued=0, request_seconds=1.5, body_seconds=0.5, grace_seconds=5)
    )
    running.client.headers["Authorization"] = "Bearer s3cret"
    yield running
    running.idle()
    running.close()


def test_the_key(narrow: RunningServer) -> None:
    with httpx.Client(base_url=narrow.url) as stranger:
        assert stranger.get("/health").status_code == 200
        for path in ("/", "/ready", "/metrics", "/v1/models", "/openapi.json", "/nothing"):
            refused = stranger.get(path)
            assert refused.status_code == 401 and error_of(refused)["code"] == "invalid_api_key"
        for given in (
            "Bearer s3cre",
            "Bearer s3cret2",
            "s3cret",
            "Basic ???",
            "Bearer",
            "Bearer \xe9".encode("latin-1"),
        ):
            assert stranger.post(CHAT, json=USER, headers={"Authorization": given}).status_code == 401
        basic = "Basic " + base64.b64encode(b"me:s3cret").decode()
        assert stranger.get("/", headers={"Authorization": basic}).status_code == 200
        assert stranger.get("/").headers["www-authenticate"].startswith("Basic")
    assert narrow.chat().status_code == 200


def test_the_queue_ends(narrow: RunningServer) -> None:
    long = {"ignore_eos": True, "max_tokens": 60, "n": 8}
    found: list[httpx.Response] = []
    first = threading.Thread(target=lambda: found.append(narrow.chat(**long)))
    first.start()
    while narrow.life.bridge.open_choices < 8:
        time.sleep(0.005)
    refused = narrow.chat()
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert error_of(refused)["type"] == "rate_limit_error" and "limit is 8" in error_of(refused)["message"]
    first.join()
    # eight choices of 60 tokens take longer than this server gives
    assert found[0].status_code in (200, 504)
    assert narrow.chat().status_code == 200


def test_what_is_being_prepared_is_in_the_queue(narrow: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    go, entered, real = threading.Event(), threading.Semaphore(0), Preparer.chat

    def slow(self: Preparer, body: Any) -> Any:
        entered.release()
        assert go.wait(20)
        return real(self, body)

    monkeypatch.setattr(Preparer, "chat", slow)
    found: list[httpx.Response] = []
    first = threading.Thread(target=lambda: found.append(narrow.chat(n=8, max_tokens=1)))
    first.start()
    try:
        assert entered.acquire(timeout=20)
        for refused in (narrow.chat(), narrow.client.post("/tokenize", json={"prompt": "x"})):
            assert refused.status_code == 429 and "limit is 8" in error_of(refused)["message"]
    finally:
        go.set()
        first.join()
    assert found[0].status_code == 200 and narrow.chat().status_code == 200


def test_every_choice_of_every_prompt_is_counted_before_it_is_prepared(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Preparer, "completion", lambda self, body: pytest.fail("memory was taken"))
    refused = server.client.post(PLAIN, json={"prompt": ["a"] * 128, "n": 128})
    assert refused.status_code == 400 and "16384 choices" in error_of(refused)["message"]


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    for file in resolve_model(None).iterdir():
        if not file.name.startswith("tokenizer"):
            (tmp_path / file.name).symlink_to(file)
    bare = RunningServer(lambda phase: LLM(tmp_path, progress=False, num_pages=4, phase=phase))
    try:
        for add in (True, False):
            refused = bare.client.post("/tokenize", json={"prompt": "x", "add_special_tokens": add})
            assert refused.status_code == 400 and "no tokenizer.json" in error_of(refused)["message"]
        assert "no tokenizer.json" in error_of(bare.chat())["message"]
        done = bare.client.post(PLAIN, json={"prompt": [5, 6], "max_tokens": 2, "logprobs": 1}).json()
        assert done["usage"]["completion_tokens"] in (1, 2) and done["choices"][0]["text"] == ""
    finally:
        bare.close()


def test_time_is_limited(narrow: RunningServer) -> None:
    late = narrow.chat(ignore_eos=True, max_tokens=4000)
    assert late.status_code == 504 and error_of(late)["code"] == "timeout" and "1.5 seconds" in late.text
    lines = narrow.chat(ignore_eos=True, max_tokens=4000, stream=True).text.strip().split("\n\n")
    assert len(lines) > 3 and lines[-1] == "data: [DONE]"
    assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "timeout"
    assert narrow.chat().status_code == 200


def test_a_body_that_never_comes(narrow: RunningServer) -> None:
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer s3cret\r\n"
        "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    with socket.create_connection(("127.0.0.1", int(narrow.url.rpartition(":")[2]))) as sock:
        sock.sendall(head.encode())
        sock.settimeout(10)
        assert b" 408 " in sock.recv(4096).split(b"\r\n")[0]
