"""The official client drives the server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from fakes.server import RunningServer
from wellhead.text import encode_messages

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "maximum": 9}},
            "required": ["city", "days"],
        },
    },
}


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def ask(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "tiny", "messages": QUESTION, "temperature": 0, "max_tokens": 16, **more}
    )


def test_models(client: openai.OpenAI) -> None:
    listed = list(client.models.list())
    assert [model.id for model in listed] == ["tiny", "org/other"]
    assert [client.models.retrieve(model.id) for model in listed] == listed
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("org/nobody")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    assert "tiny, org/other" in missing.value.message


def test_chat_says_what_generate_says(client: openai.OpenAI, server: RunningServer) -> None:
    done = ask(client)
    assert done.choices[0].message.content == "Paris" and done.choices[0].finish_reason == "stop"
    prompt = server.llm.encode(encode_messages(QUESTION))
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (len(prompt), 3)
    assert done.model == "tiny" and done.object == "chat.completion"


def test_a_stream_joined_is_the_whole(client: openai.OpenAI) -> None:
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Paris"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 3
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert all(chunk.usage is None for chunk in ask(client, stream=True))


def test_thinking_is_apart(client: openai.OpenAI) -> None:
    for asked in (
        {"reasoning_effort": "high"},
        {"extra_body": {"thinking": {"type": "enabled"}}},
        {"extra_body": {"chat_template_kwargs": {"thinking": True}}},
    ):
        done = ask(client, max_tokens=32, **asked)
        message = done.choices[0].message
        assert (message.reasoning_content, message.content) == ("France: Paris", "Paris")
        assert done.usage.completion_tokens_details.reasoning_tokens == 7
    deltas = [chunk.choices[0].delta for chunk in ask(client, max_tokens=32, stream=True, reasoning_effort="high")]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "France: Paris"
    assert "".join(delta.content or "" for delta in deltas) == "Paris"
    short = ask(client, max_tokens=3, reasoning_effort="low").choices[0]
    assert short.finish_reason == "length" and short.message.content is None
    assert ask(client, reasoning_effort="none").choices[0].message.content == "Paris"


def test_choices_and_seeds(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"n": 3, "temperature": 2, "max_tokens": 8, "extra_body": {"ignore_eos": True}}
    first, again = ask(client, seed=7, **asked), ask(client, seed=7, **asked)
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) == 3 and [choice.index for choice in first.choices] == [0, 1, 2]
    # a choice draws as it does alone
    assert ask(client, seed=8, **{**asked, "n": 1}).choices[0].message.content == texts[1]
    assert ask(client, seed=9, **asked).choices[0].message.content != texts[0]
    assert first.usage.completion_tokens == 24
    joined = {0: "", 1: "", 2: ""}
    for chunk in ask(client, seed=7, stream=True, **asked):
        joined[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(joined.values()) == texts


def test_stop_and_length(client: openai.OpenAI) -> None:
    long = client.completions.create(model="tiny", prompt="15 + 27 =", temperature=0, max_tokens=6)
    assert long.choices[0].text.startswith(" 42") and long.usage.completion_tokens <= 6
    stopped = client.completions.create(model="tiny", prompt="15 + 27 =", temperature=0, max_tokens=6, stop=["2"])
    assert stopped.choices[0].text == " 4" and stopped.choices[0].finish_reason == "stop"
    short = ask(client, max_completion_tokens=1, max_tokens=openai.omit).choices[0]
    assert short.finish_reason == "length" and short.message.content == "Par"


def test_completions_of_many_prompts(client: openai.OpenAI, server: RunningServer) -> None:
    prompts = ["15 + 27 =", "20 + 31 ="]
    options: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 3, "stop": "\n"}
    done = client.completions.create(prompt=prompts, n=2, **options)
    assert [choice.text.strip() for choice in done.choices] == ["42", "42", "51", "51"]
    ids = [server.llm.encode(prompt) for prompt in prompts]
    assert done.usage.prompt_tokens == sum(map(len, ids))
    for given in (ids, ids[0]):
        texts = [choice.text.strip() for choice in client.completions.create(prompt=given, **options).choices]
        assert texts == ["42", "51"][: len(texts)]
    stream = client.completions.create(prompt=prompts, stream=True, **options)
    texts = {0: "", 1: ""}
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert [text.strip() for text in texts.values()] == ["42", "51"]


def test_logprobs(client: openai.OpenAI) -> None:
    done = ask(client, logprobs=True, top_logprobs=2)
    entries = done.choices[0].logprobs.content
    assert [entry.token for entry in entries] == ["Par", "is"]  # the end token is not content
    for entry in entries:
        assert len(entry.top_logprobs) == 2 and entry.top_logprobs[0].token == entry.token
        assert entry.logprob == entry.top_logprobs[0].logprob <= 0 and bytes(entry.bytes).decode() == entry.token
    streamed = [
        entry
        for chunk in ask(client, logprobs=True, top_logprobs=2, stream=True)
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert streamed == entries
    assert all(entry.top_logprobs == [] for entry in ask(client, logprobs=True).choices[0].logprobs.content)
    plain = client.completions.create(model="tiny", prompt="15 + 27 =", temperature=0, max_tokens=3, logprobs=1)
    found = plain.choices[0].logprobs
    assert "".join(found.tokens).startswith(plain.choices[0].text.rstrip("\n")[:3])
    assert found.text_offset[0] == 0 and found.text_offset[1] == len(found.tokens[0])
    assert len(found.token_logprobs) == len(found.tokens) == len(found.top_logprobs)


def test_biases_and_penalties(client: openai.OpenAI, server: RunningServer) -> None:
    par, zebra = server.llm.tokenizer.encode("Par")[0], server.llm.tokenizer.encode("z")[0]
    assert not ask(client, logit_bias={str(par): -100}).choices[0].message.content.startswith("Par")
    assert ask(client, logit_bias={str(zebra): 100}, max_tokens=4).choices[0].message.content == "zzzz"
    # logprobs stay the model's own
    entry = ask(client, logit_bias={str(zebra): 100}, max_tokens=1, logprobs=True).choices[0].logprobs.content[0]
    assert entry.token == "z" and entry.logprob < -5
    forced: dict[str, Any] = {"logit_bias": {str(zebra): 30}, "max_tokens": 24, "extra_body": {"ignore_eos": True}}
    punished = ask(client, frequency_penalty=2, **forced).choices[0].message.content
    unpunished = ask(client, **forced).choices[0].message.content
    assert unpunished.count("z") > punished.count("z") > 3


def test_a_call_is_forced(client: openai.OpenAI) -> None:
    now = {"type": "function", "function": {"name": "now", "description": "the time"}}
    done = ask(client, tools=[now], tool_choice="required", parallel_tool_calls=False, max_tokens=200)
    (call,) = done.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("now", "{}") and call.id
    assert done.choices[0].finish_reason == "tool_calls" and done.choices[0].message.content is None


def test_a_named_call_is_streamed(client: openai.OpenAI) -> None:
    tools = [{"type": "function", "function": {"name": "now"}}, WEATHER]
    named = {"type": "function", "function": {"name": "get_weather"}}
    chunks = [chunk.choices[0] for chunk in ask(client, tools=tools, tool_choice=named, stream=True, max_tokens=200)]
    calls = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
    assert calls[0].id and calls[0].function.name == "get_weather" and len(calls) > 2
    assert {call.index for call in calls} == {0} and chunks[-1].finish_reason == "tool_calls"
    given = json.loads("".join(call.function.arguments or "" for call in calls))
    assert set(given) == {"city", "days"} and given["city"] in ("Paris", "Rome") and given["days"] <= 9


def test_any_text_may_be_a_calls_value(client: openai.OpenAI) -> None:
    """A quote, and what reads like an escape or like the grammar's own text, is only text."""
    for value in ('24"', "\\u0001", '\\u0001 | "x', ""):
        screen = {"name": "screen", "parameters": {"properties": {"size": {"enum": [value]}}, "required": ["size"]}}
        done = ask(client, tools=[{"type": "function", "function": screen}], tool_choice="required", max_tokens=200)
        assert json.loads(done.choices[0].message.tool_calls[0].function.arguments) == {"size": value}


def test_tools_may_be_left_alone(client: openai.OpenAI) -> None:
    done = ask(client, tools=[WEATHER], max_tokens=4)
    assert done.usage.prompt_tokens > 100  # the model is told of them
    assert ask(client, tools=[WEATHER], tool_choice="none", max_tokens=4).usage.prompt_tokens == 13
    answered = [
        *QUESTION,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "sunny"}]},
    ]
    assert ask(client, messages=answered, tools=[WEATHER], max_tokens=2).usage.prompt_tokens > 130


def test_json(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"capital": {"enum": ["Paris", "Rome"]}, "year": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["capital", "year"],
        "additionalProperties": False,
    }
    format_ = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    for more in ({"temperature": 2, "seed": 1}, {"reasoning_effort": "high"}):
        done = ask(client, response_format=format_, max_tokens=200, **more)
        found = json.loads(done.choices[0].message.content)
        assert found["capital"] in ("Paris", "Rome") and 0 <= found["year"] <= 9
        assert done.choices[0].finish_reason == "stop"
    anything = ask(client, response_format={"type": "json_object"}, max_tokens=6).choices[0]
    assert anything.message.content.startswith("{")


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        ask(client, model="gpt-5")
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as wrong:
        ask(client, temperature=9)
    assert wrong.value.param == "temperature" and "less than or equal to 2" in wrong.value.message
    with pytest.raises(openai.BadRequestError) as long:
        ask(client, messages=[{"role": "user", "content": "word " * 6000}])
    assert long.value.code == "context_length_exceeded" and "4095 at most" in long.value.message
    with pytest.raises(openai.BadRequestError) as schema:
        ask(client, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "foo"}}})
    assert schema.value.param == "response_format.json_schema.schema" and "foo" in schema.value.message


def test_roles_and_parts(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "What is the capital"}, {"type": "text", "text": " of France?"}]
    assert ask(client, messages=[{"role": "user", "content": parts}]).choices[0].message.content == "Paris"
    for role in ("system", "developer"):
        done = ask(client, messages=[{"role": role, "content": "Be brief."}, *QUESTION])
        assert done.usage.prompt_tokens > 13
