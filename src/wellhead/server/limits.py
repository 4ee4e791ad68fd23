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
