"""What a server takes at most, and how it was told to behave."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """body_bytes: of one request's body; all bodies being read together may hold `bodies_factor` times as much.
    queued: choices that wait beside those that run, more are answered 429. request_seconds: of one request from its
    arrival to its last token. body_seconds: for a body to arrive. stall_seconds: for a reader of a stream to take
    what it was sent. grace_seconds: for what runs when the server is told to end.
    """

    body_bytes: int = 8 << 20
    bodies_factor: int = 8
    queued: int = 256
    request_seconds: float = 600.0
    body_seconds: float = 30.0
    stall_seconds: float = 30.0
    grace_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("body_bytes", "bodies_factor"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.queued < 0:
            raise ValueError(f"queued is {self.queued}, expected at least 0")
        for name in ("request_seconds", "body_seconds", "stall_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected more than 0")
        if not self.grace_seconds >= 0:
            raise ValueError(f"grace_seconds is {self.grace_seconds}, expected at least 0")
