"""An OpenAI-compatible server without a model, for tests: on a loopback port, in the loop of the test."""

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

from aiohttp import web

Answer = Callable[[dict[str, Any]], Awaitable[web.Response]]


def completion(text: str, *, finish_reason: str = "stop", chat: bool = False) -> web.Response:
    """Return what a server answers: one token a character of the text."""
    content = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    usage = {"prompt_tokens": 7, "completion_tokens": len(text)}
    return web.json_response({"choices": [{**content, "finish_reason": finish_reason}], "usage": usage})


class CompletionServer:
    """Answers both interfaces by ``answer``, which a test may exchange at any time, and keeps what it was asked."""

    def __init__(
        self, answer: Answer | None = None, *, name: str = "", models: tuple[str, ...] = ("simulator",)
    ) -> None:
        self.name = name
        self.answer = answer or self.speak
        self.models = models
        self.health_status = 200
        self.delay_s = 0.0
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: list[str] = []
        self.in_flight = self.most_in_flight = 0
        self.given_up = 0
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._list)
        # A client that goes away cancels the handler, as it aborts the request in vLLM.
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.05, access_log=None)

    async def speak(self, body: dict[str, Any]) -> web.Response:
        """Answer with the server's name after ``delay_s``."""
        await asyncio.sleep(self.delay_s)
        return completion(f" {self.name or 'A city'} is a city.", chat="messages" in body)

    @property
    def url(self) -> str:
        """Address with the version."""
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}/v1"

    async def stop(self) -> None:
        """Go away: connections are closed, and nobody listens at the port."""
        await self._runner.cleanup()

    async def __aenter__(self) -> "CompletionServer":
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _complete(self, request: web.Request) -> web.Response:
        self.paths.append(request.path)
        self.keys.append(request.headers.get("Authorization", ""))
        body = await request.json()
        self.bodies.append(body)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self.answer(body)
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        finally:
            self.in_flight -= 1

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=self.health_status)

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": name} for name in self.models]})
