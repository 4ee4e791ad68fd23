"""A server in a thread of this process, over whatever model it is given."""

from __future__ import annotations

import asyncio
import contextlib
import io
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx

from wellhead.engine.llm import LLM
from wellhead.engine.story import Story
from wellhead.server.limits import Limits
from wellhead.server.serving import Life, Serving, listen


class RunningServer:
    """Started and ready when made; `close` ends it as SIGTERM would."""

    def __init__(self, load: Callable[..., LLM], *, wait: bool = True, limits: Limits | None = None, **serving: Any):
        self.said = io.StringIO()
        options = Serving(names=["tiny", "org/other"], port=0, limits=limits or Limits(), **serving)
        self.life = Life(options, load, Story(self.said))
        self._sock = listen(options.host, 0)
        self.url = f"http://127.0.0.1:{self._sock.getsockname()[1]}"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        key = {"Authorization": f"Bearer {options.key}"} if options.key else {}
        self.client = httpx.Client(base_url=self.url, timeout=60, headers=key)
        if wait:
            self.wait()

    def _run(self) -> None:
        async def life() -> None:
            self._loop = asyncio.get_running_loop()
            await self.life.run(self._sock)

        with contextlib.closing(self._sock):
            asyncio.run(life())

    def wait(self) -> None:
        deadline = time.monotonic() + 60
        while self.client.get("/ready").status_code != 200:
            assert time.monotonic() < deadline and self._thread.is_alive(), self.said.getvalue()
            time.sleep(0.02)

    def end(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self.life.told_to_end)

    def close(self) -> None:
        if self._thread.is_alive() and self._loop is not None:
            self.end()
        self._thread.join(30)
        assert not self._thread.is_alive()
        self.client.close()

    @property
    def llm(self) -> LLM:
        assert self.life.bridge.llm is not None
        return self.life.bridge.llm

    def idle(self) -> None:
        """Wait until nothing runs, then look that nothing was left behind."""
        deadline = time.monotonic() + 20
        engine = self.llm.engine
        while engine.busy or self.life.bridge.open_choices:
            assert time.monotonic() < deadline, "requests are left behind"
            time.sleep(0.01)
        engine.check()

    def chat(self, content: str = "What is the capital of France?", **more: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 12, **more}
        return self.client.post("/v1/chat/completions", json=body)
