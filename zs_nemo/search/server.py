"""The search server: any search engine of ours behind Search-R1's protocol, for other trainers to use.

A trainer written for Search-R1's retrieval server changes one address and learns from simulated search. Requests are
described in ``server_requests``, answers in ``server_answers``. A search that fails among many has an empty list; one
that is alone, or among too many that fail, fails its request with a status and a reason. No document is ever made up.
"""

import asyncio
import hmac
import logging
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from importlib.metadata import version

from aiohttp import web

from zs_nemo.config.server import ServerConfig
from zs_nemo.search.admission import Admission, QueueFull, Ticket
from zs_nemo.search.all_or_none import all_or_none
from zs_nemo.search.server_answers import answer, failure_status, refusal
from zs_nemo.search.server_metrics import CONTENT_TYPE, ServerMetrics
from zs_nemo.search.server_noise import ServerNoise
from zs_nemo.search.server_requests import MALFORMED, AskedSearches, RequestRefused, read_request, token_of
from zs_nemo.types.search import (
    RequestRejected,
    SearchEngine,
    SearchFailure,
    SearchFailureKind,
    SearchRequest,
    SearchResult,
)

_LOGGER = logging.getLogger(__name__)
_BODY_TIMEOUT_S = 60.0
_RETRY_AFTER_STOP_S = 10
_RETRY_AFTER_FAILURE_S = 5
_MAX_FAILED_SHARE = 0.5
"""Share of a request's searches that may fail, for whatever reason, and are answered with an empty list."""
_FIRST_PAUSE_S = 0.2
_BACKLOG = 1024
_MAY_PASS = {
    SearchFailureKind.timeout,
    SearchFailureKind.unavailable,
    SearchFailureKind.empty,
    SearchFailureKind.invalid,
}
"""Failures after which the same search can succeed."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class SearchServer:
    """Serves one engine. Whoever builds it owns the engine and closes it afterwards."""

    def __init__(
        self,
        engine: SearchEngine,
        settings: ServerConfig,
        *,
        num_documents: int,
        noise: ServerNoise | None = None,
        token: str = "",
        trouble: Callable[[], str] = str,
    ) -> None:
        """``num_documents`` answers a request without topk.

        ``noise`` is None for an engine that cannot be noisy. ``trouble`` returns why the engine cannot answer now; ""
        as long as nothing is known against it.
        """
        self._engine = engine
        self._settings = settings
        self._num_documents = num_documents
        self._noise = noise or ServerNoise(settings.noise, None)
        self._token = token.encode()
        self._trouble = trouble
        self._admission = Admission(max_concurrency=settings.max_concurrency, max_queue=settings.max_queue)
        self._metrics = ServerMetrics(self._admission, engine.name)
        self._began = time.monotonic()
        self._is_stopping = False

    def app(self) -> web.Application:
        """Return the application with its routes."""
        app = web.Application(
            middlewares=[self._at_the_border], client_max_size=int(self._settings.max_body_mib * 2**20)
        )
        app.add_routes(
            [
                web.post("/retrieve", self._retrieve),
                web.post("/search", self._retrieve),
                web.get("/health", self._health),
                web.get("/metrics", self._show_metrics),
            ]
        )
        return app

    async def serve(self, listening: socket.socket) -> None:
        """Answer until SIGINT or SIGTERM, then let requests under way end; a second signal cuts them off."""
        runner = web.AppRunner(self.app(), access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        await runner.setup()
        stop, cut = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, lambda: (cut if stop.is_set() else stop).set())
        try:
            await web.SockSite(runner, listening, backlog=_BACKLOG).start()
            await stop.wait()
            await self._drain(cut)
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            await runner.cleanup()

    async def _drain(self, cut: asyncio.Event) -> None:
        """Refuse what comes and wait for what is under way, while health checks still get their answer."""
        self._is_stopping = True
        give_up_at = time.monotonic() + self._settings.drain_timeout_s
        while self._admission.num_pending and time.monotonic() < give_up_at and not cut.is_set():
            await asyncio.sleep(0.02)

    async def _retrieve(self, request: web.Request) -> web.StreamResponse:
        self._check_token(request)
        if self._is_stopping:
            raise RequestRefused(503, "the server is shutting down", retry_after_s=_RETRY_AFTER_STOP_S)
        asked = read_request(await self._body(request), request.query, self._settings)
        try:
            with self._admission.admit(len(asked.searches)) as ticket:
                # Not before it is let in: what is refused is no search that moves the curriculum on.
                requests = self._noise.requests(asked, self._num_documents)
                self._metrics.count_cut_queries(asked.num_cut)
                results = await self._search_all(requests, ticket)
        except QueueFull as full:
            raise RequestRefused(429, str(full), retry_after_s=full.retry_after_s) from None
        return self._answer(asked, results)

    def _answer(self, asked: AskedSearches, results: Sequence[SearchResult]) -> web.Response:
        defects: Counter[str] = Counter()
        response = web.json_response(answer(asked, results, defects))
        self._metrics.count_defects(defects)
        return response

    def _may_search(self, request: web.Request) -> bool:
        given = token_of(request.headers.get("Authorization", ""))
        return not self._token or hmac.compare_digest(given, self._token)

    def _check_token(self, request: web.Request) -> None:
        if not self._may_search(request):
            raise RequestRefused(
                401,
                "the header Authorization must be 'Bearer' and this server's token, or 'Basic' with the token as the "
                "password, which a client sends that asks http://:TOKEN@HOST:PORT/retrieve",
            )

    async def _body(self, request: web.Request) -> bytes:
        limit = request.client_max_size
        if (request.content_length or 0) > limit:
            raise RequestRefused(413, f"the body is longer than this server's {self._settings.max_body_mib:g} MiB")
        try:
            async with asyncio.timeout(_BODY_TIMEOUT_S):
                return await request.read()
        except TimeoutError:
            raise RequestRefused(408, f"the body did not arrive within {_BODY_TIMEOUT_S:g} s") from None
        except web.RequestPayloadError as error:
            # Such as one that is not compressed as its header says.
            raise RequestRefused(MALFORMED, f"the body cannot be read: {' '.join(str(error).split())}") from None

    async def _search_all(self, requests: Sequence[SearchRequest], ticket: Ticket) -> list[SearchResult]:
        """Run all searches of a request at once; a failure too many cancels the others and is raised.

        Until then a search that fails has found nothing: the others are worth having, and a trainer that sends a whole
        batch would end with it.
        """
        # An empty query cannot fail: it makes up for none that does.
        most = _MAX_FAILED_SHARE * sum(bool(request.query.strip()) for request in requests)
        num_failed = 0

        async def one(request: SearchRequest) -> SearchResult:
            nonlocal num_failed
            try:
                return await self._search(request, ticket)
            except SearchFailure:
                num_failed += 1
                if num_failed > most:
                    raise
                return SearchResult(documents=(), source=self._engine.name)

        try:
            results = await all_or_none(one(request) for request in requests)
        except SearchFailure as failure:
            raise _refused(failure) from None
        self._metrics.count_failures_passed_over(num_failed)
        return results

    async def _search(self, request: SearchRequest, ticket: Ticket) -> SearchResult:
        async with ticket.turn():
            began, outcome = time.perf_counter(), "error"
            try:
                result = await self._try(request)
                outcome = "ok"
            except SearchFailure as failure:
                outcome = failure.kind.name
                raise
            except asyncio.CancelledError:
                outcome = "cancelled"
                raise
            finally:
                self._metrics.count_search(outcome, time.perf_counter() - began)
        self._metrics.count_result(result)
        return result

    async def _try(self, request: SearchRequest) -> SearchResult:
        """Ask the engine, again with growing pauses where it fails, within the time of one search.

        An empty query finds nothing without being asked.
        """
        if not request.query.strip():
            return SearchResult(documents=(), source=self._engine.name)
        limit_s, num_attempts = self._settings.search_timeout_s, self._settings.max_attempts
        try:
            async with asyncio.timeout(limit_s):
                for attempt in range(num_attempts):
                    try:
                        return await self._engine.search(replace(request, attempt=attempt))
                    except SearchFailure as failure:
                        may_pass = failure.kind in _MAY_PASS and not isinstance(failure, RequestRejected)
                        if attempt + 1 == num_attempts or not may_pass:
                            raise
                    await asyncio.sleep(_FIRST_PAUSE_S * 2**attempt)
        except TimeoutError:
            pass
        raise SearchFailure(SearchFailureKind.timeout, f"{self._engine.name}: no answer within {limit_s:g} s")

    async def _health(self, request: web.Request) -> web.StreamResponse:
        trouble = "the server is shutting down" if self._is_stopping else self._trouble()
        if trouble and not self._is_stopping and not self._may_search(request):
            # It names addresses, and this is open to everybody.
            trouble = "the engine cannot answer; with the token this says why"
        state = {
            "engine": self._engine.name,
            "version": version("zs-nemo"),
            "uptime_s": round(time.monotonic() - self._began, 3),
            "ready": not trouble,
            "trouble": trouble,
            "in_flight": self._admission.num_in_flight,
            "queued": self._admission.num_queued,
            "step": self._noise.step,
            "noise": self._noise.probability,
        }
        return web.json_response(state, status=503 if trouble else 200)

    async def _show_metrics(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    @web.middleware
    async def _at_the_border(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Turn whatever happens into an answer with a reason, and count it."""
        try:
            response = await handler(request)
        except RequestRefused as refused:
            response = refusal(refused.status, refused.reason, retry_after_s=refused.retry_after_s)
        except web.HTTPException as error:
            response = refusal(error.status, error.text or error.reason)
            if "Allow" in error.headers:
                response.headers["Allow"] = error.headers["Allow"]
        except Exception:  # A process border: the client gets an answer, the log the stack.
            _LOGGER.exception("a request failed")
            response = refusal(500, "the server failed; its log says how")
        if self._is_stopping:
            response.force_close()
        resource = request.match_info.route.resource
        self._metrics.count_request(resource.canonical if resource else "other", response.status)
        return response


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; raise ``ValueError`` naming the setting when it cannot.

    Taken before anything expensive starts. Clients that come before the server is ready wait.
    """
    try:
        return socket.create_server((host, port), family=_family(host), backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None)
        # Python adds the address to the system's text; errors of name resolution have negative numbers.
        reason = os.strerror(number) if number and number > 0 else getattr(error, "strerror", None) or error
        raise ValueError(
            f"server.host={host} with server.port={port} cannot be listened on ({reason}); set server.port=0 for any "
            "free port, or end the process that holds it"
        ) from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _refused(failure: SearchFailure) -> RequestRefused:
    status = failure_status(failure.kind)
    return RequestRefused(status, str(failure), retry_after_s=_RETRY_AFTER_FAILURE_S if status == 503 else None)
