"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

_SHOWN = 100  # characters of a value in a message
_MEMBER = re.compile(r"str$|(list|constrained-|literal|function-|nullable|fail-fast)|[A-Z]")


class ApiError(Exception):
    """An answer that is an error. `param` names the field of the request, dotted, where one is to blame."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": kind(self.status), "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """ASCII JSON: what is quoted in a message may be no valid Unicode."""
        return Response(json.dumps(self.body), self.status, self.headers, "application/json")


def kind(status: int) -> str:
    """OpenAI's `type` of a status."""
    named = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    return named.get(status, "invalid_request_error" if status < 500 else "server_error")


def bad(param: str | None, message: str, code: str = "invalid_value") -> ApiError:
    """A 400 for one field of the request."""
    return ApiError(400, message, param=param, code=code)


def busy(message: str, seconds: int) -> ApiError:
    return ApiError(429, message, code="queue_full", headers={"Retry-After": str(seconds)})


def unavailable(message: str, code: str, seconds: int) -> ApiError:
    return ApiError(503, message, code=code, headers={"Retry-After": str(seconds)})


def shown(value: object) -> str:
    """A value in a message, cut short."""
    text = ascii(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def from_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """One of pydantic's errors about a body: of a union's members the one that went furthest."""
    found = max(errors, key=lambda error: _reached(error["loc"]))
    param = _field(found["loc"])
    if found["type"] == "json_invalid":
        detail = found.get("ctx", {}).get("error", found["msg"])
        return ApiError(400, f"the body is not valid JSON: {shown(detail)}", code="invalid_json")
    if found["type"] == "unknown_field":
        name = str(found["ctx"]["field"])
        param = f"{param}.{name}" if param else name
        return bad(param[:_SHOWN], f"unrecognized field {shown(param)}; remove it", "unknown_parameter")
    if found["type"] == "contradiction":
        return bad(str(found["ctx"]["field"]), str(found["msg"]))
    if found["type"] == "missing":
        return bad(param, f"{f'field {param}' if param else 'the body'} is missing", "missing_required_parameter")
    got = "" if isinstance(found.get("input"), dict | list) else f" (got {shown(found.get('input'))})"
    text = str(found["msg"]).removeprefix("Value error, ")
    return bad(param and param[:_SHOWN], f"{param[:_SHOWN] if param else 'the body'}: {text[:300]}{got}")


def _reached(location: Sequence[str | int]) -> tuple[int, int]:
    last = location[-1] if location else 0
    return len(location), last if isinstance(last, int) else 0


def _field(location: Sequence[str | int]) -> str | None:
    """The field, dotted: a location also names which members of a union were tried."""
    parts = [str(part) for part in location if part != "body"]
    if parts[:1] == ["response_format"]:
        del parts[1:2]
    return ".".join([*parts[:1], *(part for part in parts[1:] if not _MEMBER.match(part))]) or None
