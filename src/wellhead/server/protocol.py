"""The bodies of requests, checked. Fields are OpenAI's; those marked so are ours, vLLM's or SGLang's.

A field that is not here is refused with its name, as OpenAI refuses it: a typo must not quietly mean the default.
Fields of the API that cannot change an answer here (`user`, `metadata`, `store`, ...) are taken and not used.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

MOST_CHOICES = 128
MOST_STOPS, LONGEST_STOP = 16, 1024
MOST_BIASES = 1024
MOST_TOP_LOGPROBS = 20
MOST_MESSAGES, MOST_TOOLS = 16384, 128
INT32 = 2**31 - 1


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("is not valid Unicode: it holds a lone surrogate") from None
    return text


Text = Annotated[str, AfterValidator(_unicode)]
Stop = Annotated[Text, Field(min_length=1, max_length=LONGEST_STOP)]
Id = Annotated[int, Field(ge=0, le=INT32)]
Fast = Field(fail_fast=True)  # one error is enough, of a list of a million


def _contradiction(field: str, message: str) -> PydanticCustomError:
    return PydanticCustomError("contradiction", "{message}", {"message": message, "field": field})


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _only_known_fields(cls, data: Any) -> Any:
        """Before pydantic's own check, which would make an error of each of a million fields."""
        if isinstance(data, dict):
            known = {field.alias or name for name, field in cls.model_fields.items()}
            for name in data:
                if name not in known:
                    raise PydanticCustomError("unknown_field", "unrecognized field", {"field": name})
        return data


class StreamOptions(_Body):
    include_usage: bool = False
    include_obfuscation: bool = False  # taken, not used


class Sampling(_Body):
    """What chat and plain completions share."""

    model: Text | None = Field(None, max_length=1024)
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=INT32, description="ours: 0 and -1 keep all")
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: Stop | Annotated[list[Stop], Fast] | None = None
    max_tokens: int | None = Field(None, ge=1, le=INT32)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=MOST_BIASES)
    ignore_eos: bool | None = Field(None, description="ours: go on after an end token")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Text | None = None

    @property
    def choices(self) -> int:
        return self.n or 1

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        if isinstance(stop, list) and len(stop) > MOST_STOPS:
            raise ValueError(f"{len(stop)} stop strings, at most {MOST_STOPS} are possible")
        return stop

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Sampling:
        if self.stream_options is not None and not self.stream:
            raise _contradiction("stream_options", "stream_options is given without stream: true; add that")
        return self


class Completion(Sampling):
    prompt: (
        Text
        | Annotated[list[Text], Fast]
        | Annotated[list[Id], Fast]
        | Annotated[list[Annotated[list[Id], Fast]], Fast]
    )
    logprobs: int | None = Field(None, ge=0, le=MOST_TOP_LOGPROBS)
    echo: Literal[False] | None = None
    best_of: int | None = Field(None, ge=1, le=MOST_CHOICES)
    suffix: None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        given: Any = self.prompt
        return [given] if isinstance(given, str) or isinstance(given[0], int) else given

    @property
    def choices(self) -> int:
        return super().choices * len(self.prompts)

    @field_validator("prompt")
    @classmethod
    def _some_prompts(cls, prompt: Any) -> Any:
        if isinstance(prompt, list) and not prompt:
            raise ValueError("the list is empty, expected at least one prompt or token id")
        if isinstance(prompt, list) and not isinstance(prompt[0], int) and len(prompt) > MOST_CHOICES:
            raise ValueError(f"{len(prompt)} prompts, at most {MOST_CHOICES} are possible in a request")
        return prompt

    @model_validator(mode="after")
    def _best_of_is_n(self) -> Completion:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise _contradiction(
                "best_of", f"best_of is {self.best_of} and n is {self.n or 1}: choosing among more is not supported"
            )
        return self


class Part(_Body):
    type: Literal["text"] = Field(description="text is all this model reads")
    text: Text


class CalledFunction(_Body):
    name: Text = Field(min_length=1, max_length=256)
    arguments: Text


class Call(_Body):
    id: Text | None = Field(None, max_length=256)
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None  # streamed deltas that a client sends back as they came


class Message(_Body):
    role: Literal["system", "developer", "user", "assistant", "tool", "latest_reminder"]
    content: Text | Annotated[list[Part], Fast] | None = None
    name: Text | None = Field(None, max_length=256)
    tool_calls: Annotated[list[Call], Fast] | None = Field(None, max_length=MOST_TOOLS)
    tool_call_id: Text | None = Field(None, max_length=256)
    reasoning_content: Text | None = None
    refusal: Text | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None


class Function(_Body):
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Body):
    type: Literal["function"]
    function: Function


class ChosenFunction(_Body):
    name: Text


class ToolChoice(_Body):
    type: Literal["function"]
    function: ChosenFunction


class JsonSchema(_Body):
    name: Text = Field(max_length=256)
    description: Text | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextFormat(_Body):
    type: Literal["text"]


class ObjectFormat(_Body):
    type: Literal["json_object"]
    value: dict[str, Any] | None = Field(None, description="a schema, where huggingface_hub's client puts it")


class SchemaFormat(_Body):
    type: Literal["json_schema"]
    json_schema: JsonSchema


class Thinking(_Body):
    type: Literal["enabled", "disabled"]


class TemplateArguments(_Body):
    thinking: bool | None = None
    enable_thinking: bool | None = None


class Chat(Sampling):
    messages: Annotated[list[Message], Fast] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, le=INT32)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_TOP_LOGPROBS)
    response_format: Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    tools: Annotated[list[Tool], Fast] | None = Field(None, max_length=MOST_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    thinking: Thinking | None = Field(None, description='of DeepSeek\'s API: {"type": "enabled"} or "disabled"')
    chat_template_kwargs: TemplateArguments | None = Field(None, description="of vLLM and SGLang: thinking")
    # of the API, without effect here
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: Text | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    prompt_cache_retention: Text | None = None
    modalities: list[Literal["text"]] | None = None

    @model_validator(mode="after")
    def _options_agree(self) -> Chat:
        if self.top_logprobs is not None and not self.logprobs:
            raise _contradiction("top_logprobs", "top_logprobs is given without logprobs: true; add it or remove this")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise _contradiction(
                "max_tokens",
                f"max_tokens is {self.max_tokens} and max_completion_tokens {self.max_completion_tokens}; give one",
            )
        return self


class Tokenize(_Body):
    """`prompt`, a text; or `messages`, as a chat would encode them."""

    model: Text | None = Field(None, max_length=1024)
    prompt: Text | None = None
    messages: Annotated[list[Message], Fast] | None = Field(None, min_length=1, max_length=MOST_MESSAGES)
    tools: Annotated[list[Tool], Fast] | None = Field(None, max_length=MOST_TOOLS)
    add_special_tokens: bool = Field(True, description="ours: the begin token in front of a prompt")
    chat_template_kwargs: TemplateArguments | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Tokenize:
        if (self.prompt is None) == (self.messages is None):
            raise _contradiction("prompt", "expected either prompt or messages")
        return self
