"""Every literal of the V4 prompt format (release of April 2026); the bytes are the format.

The encoder and the parser take their markup from here only; an encoder for a later release brings its own.
Source: encoding/encoding_dsv4.py of the published checkpoints. The bar is U+FF5C, the low line U+2581.
"""

from __future__ import annotations

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
LATEST_REMINDER = "<｜latest_reminder｜>"
THINK_BEGIN = "<think>"
THINK_END = "</think>"
DSML = "｜DSML｜"

TASKS = {
    "action": "<｜action｜>",
    "query": "<｜query｜>",
    "authority": "<｜authority｜>",
    "domain": "<｜domain｜>",
    "title": "<｜title｜>",
    "read_url": "<｜read_url｜>",
}

# Text put before the first message, by reasoning effort; only thinking mode uses it.
EFFORT_PREFIX: dict[str | None, str] = {
    None: "",
    "high": "",
    "max": (
        "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
        "You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve the "
        "root cause, rigorously stress-testing your logic against all potential paths, edge cases, and "
        "adversarial scenarios.\n"
        "Explicitly write out your entire deliberation process, documenting every intermediate step, "
        "considered alternative, and rejected hypothesis to ensure absolutely no assumption is left "
        "unchecked.\n\n"
    ),
}

# Tags stop before their ">", except the last one, where only the end token may follow.
CALLS_BEGIN = f"<{DSML}tool_calls"
CALLS_END = f"</{DSML}tool_calls>"
INVOKE_BEGIN = f"<{DSML}invoke"
INVOKE_END = f"</{DSML}invoke"
PARAMETER_BEGIN = f"<{DSML}parameter"
PARAMETER_END = f"</{DSML}parameter"
# Between two tags: the rest of the first tag and its line end.
TAG_REST = ">\n"
BEFORE_CALLS = "\n\n"

RESULT_BEGIN = "<tool_result>"
RESULT_END = "</tool_result>"

RESPONSE_FORMAT = "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"

TOOLS_HEAD = f"""## Tools

You have access to a set of tools to help answer the user's question. \
You can invoke tools by writing a "{CALLS_BEGIN}>" block like the following:

{CALLS_BEGIN}>
{INVOKE_BEGIN} name="$TOOL_NAME">
{PARAMETER_BEGIN} name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE{PARAMETER_END}>
...
{INVOKE_END}>
{INVOKE_BEGIN} name="$TOOL_NAME2">
...
{INVOKE_END}>
{CALLS_END}

String parameters should be specified as is and set `string="true"`. \
For all other types (numbers, booleans, arrays, objects), \
pass the value in JSON format and set `string="false"`.

If thinking_mode is enabled (triggered by {THINK_BEGIN}), \
you MUST output your complete reasoning inside {THINK_BEGIN}...{THINK_END} \
BEFORE any tool calls or final response.

Otherwise, output directly after {THINK_END} with tool calls or final response.

### Available Tool Schemas

"""
TOOLS_TAIL = """

You MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.
"""
