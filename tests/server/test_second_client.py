"""A client that shares no code with OpenAI's: huggingface_hub's InferenceClient, with dataclasses of its own."""

from __future__ import annotations

import json
from typing import Any

import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from fakes.server import RunningServer

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
SCHEMA = {
    "type": "object", "properties": {"capital": {"enum": ["Paris", "Rome"]}}, "required": ["capital"],
    "additionalProperties": False,
}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "look_up", "description": "a capital", "parameters": SCHEMA}}


@pytest.fixture(scope="module")
def client(server: RunningServer) -> InferenceClient:
    return InferenceClient(base_url=f"{server.url}/v1", api_key="none", timeout=60)


def ask(client: InferenceClient, **more: Any) -> Any:
    return client.chat_completion(**{"messages": QUESTION, "model": "tiny", "max_tokens": 100, **more})


def test_a_chat(client: InferenceClient) -> None:
    done = ask(client, temperature=0)
    assert (done.choices[0].message.content, done.choices[0].finish_reason) == ("Paris", "stop")
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (13, 3)


def test_a_stream(client: InferenceClient) -> None:
    chunks = list(ask(client, temperature=0, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "Paris"
    assert chunks[-2].choices[0].finish_reason == "stop" and chunks[-1].usage.completion_tokens == 3


def test_reasoning_is_apart(client: InferenceClient) -> None:
    done = ask(client, temperature=0, extra_body={"thinking": {"type": "enabled"}})
    assert (done.choices[0].message["reasoning_content"], done.choices[0].message.content) == ("France: Paris", "Paris")


def test_logprobs(client: InferenceClient) -> None:
    found = ask(client, temperature=0, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert [entry.token for entry in found] == ["Par", "is"]
    assert all(entry.top_logprobs[0].logprob == entry.logprob > entry.top_logprobs[1].logprob for entry in found)


def test_json_of_a_schema(client: InferenceClient) -> None:
    format_: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    done = ask(client, temperature=1.9, seed=1, response_format=format_)
    assert json.loads(done.choices[0].message.content)["capital"] in ("Paris", "Rome")
    format_["json_schema"]["schema"] = {"type": "foo"}
    with pytest.raises(HfHubHTTPError, match="'response_format\\.value', 'code': 'unsupported_schema'"):
        ask(client, response_format=format_)


def test_tools(client: InferenceClient) -> None:
    named = {"type": "function", "function": {"name": "look_up"}}
    (call,) = ask(client, tools=[TOOL], tool_choice=named).choices[0].message.tool_calls
    assert call.function.name == "look_up" and json.loads(call.function.arguments)["capital"] in ("Paris", "Rome")
    deltas = [chunk.choices[0].delta for chunk in ask(client, tools=[TOOL], tool_choice=named, stream=True)]
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert calls[0].function.name == "look_up" and len(calls) > 2
    assert set(json.loads("".join(call.function.arguments or "" for call in calls))) == {"capital"}


def test_errors(client: InferenceClient) -> None:
    for change, status, words in (
        ({"temperature": 9}, 400, "less than or equal to 2"),
        ({"model": "nobody"}, 404, "is not served here"),
        ({"messages": []}, 400, "at least 1 item"),
    ):
        with pytest.raises(HfHubHTTPError, match=words) as refused:
            ask(client, **change)
        assert refused.value.response.status_code == status
