"""Several HTTP endpoints that serve the same model, asked as one.

Least loaded first; retried elsewhere; a circuit breaker for each; optionally a second request for the slow tail. One
event loop and one client session; nothing is drawn by chance: the jitter of pauses is keyed by the call's seed.
"""

import asyncio
import hashlib
import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import aiohttp

from zs_nemo.config.endpoints import EndpointPoolConfig, version_url
from zs_nemo.search.endpoint_health import (
    ERROR_CHARACTERS,
    check_health,
    error_text,
    open_session,
    proxy_for,
    redacted,
)
from zs_nemo.search.endpoint_state import Circuit, Endpoint, EndpointStatistics, Lease
from zs_nemo.search.http_client import asked_pause_s
from zs_nemo.types.search import RequestRejected, SearchFailure, SearchFailureKind

MAX_ANSWER_BYTES = 8 * 2**20
"""Of an answer that is longer nothing is used."""
_MIN_LATENCIES = 20
"""Before so many answers have come, nothing is known about the slow tail."""
_LATENCIES = 512
_WAITS = 512
_WORTH_TELLING_S = 1.0
"""A shorter wait for a turn is no reason for anything."""
_REFUSED = (400, 413, 422)
"""The request itself is at fault: another endpoint would refuse it too."""

T = TypeVar("T")


class _EndpointFailed(Exception):  # noqa: N818  (an outcome that the pool acts upon)
    """One request brought no answer; the call goes on elsewhere."""

    def __init__(self, kind: SearchFailureKind, text: str, *, pushed_back: bool = False) -> None:
        super().__init__(text)
        self.kind = kind
        self.pushed_back = pushed_back
        """The endpoint is well and asks for fewer requests: no reason to open its circuit."""


@dataclass(eq=False)
class _Call(Generic[T]):
    path: str
    body: bytes
    read: Callable[[Any], T]
    seed: int
    failed: set[Endpoint] = field(default_factory=set)
    """Endpoints that have failed this call since its last pause."""
    kind: SearchFailureKind = SearchFailureKind.timeout
    """Of the last failure."""
    has_begun: bool = False
    """Whether it has had its turn."""

    def pause_s(self, number: int, settings: EndpointPoolConfig) -> float:
        """Return the pause before the ``number``-th return to an endpoint: 0.5 to 1.5 times its nominal length."""
        digest = hashlib.blake2b(f"{self.seed}/pause/{number}".encode(), digest_size=8).digest()
        jitter = 0.5 + int.from_bytes(digest, "little") / 2**64
        return float(min(settings.first_pause_s * 2**number, settings.longest_pause_s)) * jitter


@dataclass(eq=False)
class _Waiter:
    future: "asyncio.Future[Lease]"
    avoided: set[Endpoint]
    since: float


class EndpointPool:
    """The endpoints behind one verb, ``post``. Starts by itself in the event loop that first uses it."""

    def __init__(self, addresses: Sequence[str], settings: EndpointPoolConfig, *, api_key: str = "") -> None:
        """``api_key`` is sent as a bearer token and told nowhere else."""
        assert addresses
        self._settings = settings
        self._api_key = api_key
        self._endpoints = [
            Endpoint(
                url=url,
                circuit=Circuit(failures_to_open=settings.failures_to_open, open_s=settings.open_s),
                proxy=proxy_for(url),
            )
            for url in map(version_url, addresses)
        ]
        self._waiting: deque[_Waiter] = deque()
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)
        self._waits_s: deque[float] = deque(maxlen=_WAITS)
        """Of the last requests, for their turns."""
        self._answered_at = 0.0
        """When an endpoint has last answered a request."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def statistics(self) -> dict[str, EndpointStatistics]:
        """What every endpoint has done, by its address."""
        return {endpoint.url: endpoint.statistics for endpoint in self._endpoints}

    async def post(self, path: str, body: dict[str, Any], read: Callable[[Any], T], *, seed: int) -> T:
        """Send a JSON body and return what ``read`` makes of the JSON answer.

        ``path`` begins behind the version ("/completions"). ``read`` raises ``ValueError`` for an answer that does not
        follow the protocol, which is a failure of the endpoint. Raises ``RequestRejected`` at once if the request
        itself is refused, otherwise ``SearchFailure``, naming every endpoint with its last error: within the deadline
        from the call's turn on, or when no endpoint has answered anything for as long while it waited for that.
        """
        self._start()
        call = _Call(path, json.dumps(body).encode(), read, seed)
        try:
            lease = await self._lease(call)
            async with asyncio.timeout(self._settings.deadline_s):
                return await self._with_retries(lease, call)
        except TimeoutError:
            told = f"no answer within {self._settings.deadline_s:g} s from any of {len(self._endpoints)} endpoints"
            raise SearchFailure(call.kind, f"{told}: {self.account()}") from None

    def account(self) -> str:
        """Return the endpoints with their last errors, for whoever has to say why there was no answer."""
        now = self._now() if self._waiting else 0.0
        waiting_s = [now - waiter.since for waiter in self._waiting if not waiter.future.done()]
        account = "; ".join(f"{each.url}: {each.last_error or 'no error so far'}" for each in self._endpoints)
        if (longest_s := max([*self._waits_s, *waiting_s], default=0.0)) >= _WORTH_TELLING_S:
            account += (
                f"; requests have waited up to {longest_s:.0f} s for a turn: raise pool.max_concurrency="
                f"{self._settings.max_concurrency} if the servers can take more at once, or ask for less at once"
            )
        return account

    def trouble(self) -> str:
        """Return "" as long as an endpoint can be expected to answer, else their account."""
        if self._loop is None:
            return ""
        now, is_looked_after = self._now(), self._settings.health_interval_s > 0
        is_hopeless = all(each.circuit.is_hopeless(now, is_looked_after=is_looked_after) for each in self._endpoints)
        return self.account() if is_hopeless else ""

    async def close(self) -> None:
        """End the health checks and close the connections. The pool starts anew when it is used again."""
        if self._keeper is not None and self._loop is asyncio.get_running_loop():
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._keeper = None

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is loop and self._keeper is not None and not self._keeper.done():
            return
        # What was under way in a loop that has ended was cancelled with it; times of one clock say nothing in another.
        self._loop = loop
        self._answered_at = loop.time()
        self._waiting.clear()
        for endpoint in self._endpoints:
            endpoint.in_flight, endpoint.rests_until = 0, 0.0
            endpoint.circuit = Circuit(failures_to_open=self._settings.failures_to_open, open_s=self._settings.open_s)
        self._session = open_session(self._api_key)
        self._keeper = loop.create_task(self._keep(self._session))

    async def _keep(self, session: aiohttp.ClientSession) -> None:
        """Own the session, and look after the endpoints' health as long as it lasts."""
        interval = self._settings.health_interval_s
        try:
            while interval:
                await asyncio.sleep(interval)
                await asyncio.gather(*(self._look_after(session, endpoint) for endpoint in self._endpoints))
            await asyncio.Event().wait()
        finally:
            await session.close()

    async def _look_after(self, session: aiohttp.ClientSession, endpoint: Endpoint) -> None:
        error = await check_health(session, endpoint.url, self._settings.request_timeout_s, self._api_key)
        now = self._now()
        if error:
            self._note_failure(endpoint, error, now)
        elif endpoint.circuit.is_open:
            # The next request may try it, without waiting for the rest of the pause.
            endpoint.circuit.is_up_again(now)
            self._dispatch()

    async def _with_retries(self, lease: Lease, call: _Call[T]) -> T:
        num_pauses = 0
        while True:
            try:
                return await self._ask_hedged(lease, call)
            except _EndpointFailed as failure:
                call.kind = failure.kind
            now = self._now()
            if call.failed and not any(each.admits(now) for each in self._endpoints if each not in call.failed):
                await asyncio.sleep(call.pause_s(num_pauses, self._settings))
                num_pauses += 1
                call.failed.clear()
            lease = await self._lease(call)

    async def _lease(self, call: _Call[T]) -> Lease:
        """Wait for this call's turn and for room at an endpoint, one that has not failed it if any of those is alive.

        The wait is no fault of endpoints that go on answering others. Raises ``TimeoutError`` where they do not.
        """
        assert self._loop is not None
        since = self._now()
        waiter = _Waiter(self._loop.create_future(), call.failed, since)
        # Who has had a turn that brought nothing waits for no second one.
        (self._waiting.appendleft if call.has_begun else self._waiting.append)(waiter)
        self._dispatch()
        try:
            while not waiter.future.done():
                patience_s = max(since, self._answered_at) + self._settings.deadline_s - self._now()
                if patience_s <= 0:
                    raise TimeoutError
                await asyncio.wait([waiter.future], timeout=patience_s)
        except (asyncio.CancelledError, TimeoutError):
            if waiter.future.done():
                waiter.future.result().end()
                self._dispatch()
            waiter.future.cancel()
            raise
        finally:
            self._waits_s.append(self._now() - since)
        call.has_begun = True
        return waiter.future.result()

    def _dispatch(self) -> None:
        """Give room to those who wait, in their order; one that can only go where there is none lets others pass."""
        now = self._now()
        passed = []
        while self._waiting and any(self._has_room(endpoint, now) for endpoint in self._endpoints):
            waiter = self._waiting.popleft()
            if waiter.future.done():
                continue
            endpoint = self._least_loaded(waiter.avoided, now)
            if endpoint is None:
                passed.append(waiter)
            else:
                waiter.future.set_result(endpoint.begin())
        self._waiting.extendleft(reversed(passed))

    def _least_loaded(self, avoided: set[Endpoint], now: float) -> Endpoint | None:
        alive = [endpoint for endpoint in self._endpoints if endpoint.admits(now)]
        chosen = [endpoint for endpoint in alive if endpoint not in avoided] or alive
        free = [endpoint for endpoint in chosen if self._has_room(endpoint, now)]
        return min(free, key=lambda endpoint: (endpoint.in_flight, endpoint.statistics.requests), default=None)

    def _has_room(self, endpoint: Endpoint, now: float) -> bool:
        return endpoint.in_flight < self._settings.max_concurrency and endpoint.admits(now)

    async def _ask_hedged(self, lease: Lease, call: _Call[T]) -> T:
        """Ask one endpoint, and another one too if it is slow; the first answer counts."""
        patience_s = self._patience_s()
        if patience_s is None:
            return await self._ask(lease, call)
        running = [asyncio.ensure_future(self._ask(lease, call))]
        try:
            await asyncio.wait(running, timeout=patience_s)
            if not running[0].done() and (other := self._other_than(lease.endpoint, call.failed)):
                hedge = other.begin()
                other.statistics.hedges += 1
                running.append(asyncio.ensure_future(self._ask(hedge, call)))
            winner = await _first_success(running)
            if len(running) > 1 and winner is running[1]:
                hedge.endpoint.statistics.hedges_won += 1
            return winner.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _other_than(self, slow: Endpoint, failed: set[Endpoint]) -> Endpoint | None:
        """Return an endpoint for a second request: one that has room and for which nobody waits."""
        if any(not waiter.future.done() for waiter in self._waiting):
            return None
        now = self._now()
        free = [
            endpoint
            for endpoint in self._endpoints
            if endpoint is not slow
            and endpoint not in failed
            and not endpoint.circuit.is_open
            and self._has_room(endpoint, now)
        ]
        return min(free, key=lambda endpoint: endpoint.in_flight, default=None)

    def _patience_s(self) -> float | None:
        """Return how long an answer may take before a second endpoint is asked; None for as long as it needs."""
        quantile = self._settings.hedge_quantile
        if not quantile or len(self._endpoints) < 2 or len(self._latencies) < _MIN_LATENCIES:
            return None
        ranked = sorted(self._latencies)
        return ranked[min(int(quantile * len(ranked)), len(ranked) - 1)]

    async def _ask(self, lease: Lease, call: _Call[T]) -> T:
        """Send one request; raise ``_EndpointFailed``, or ``RequestRejected`` if the request is refused."""
        endpoint, statistics = lease.endpoint, lease.endpoint.statistics
        began = self._now()
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                answer = await self._exchange(endpoint, call)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            text = f"no answer within {self._settings.request_timeout_s:g} s"
            if isinstance(error, aiohttp.ClientError) or not isinstance(error, TimeoutError):
                text = f"{type(error).__name__}: {error}"
            failure = _EndpointFailed(SearchFailureKind.unavailable, text)
            self._note(lease, call, failure)
            raise failure from None
        except _EndpointFailed as failure:
            self._note(lease, call, failure)
            raise
        except asyncio.CancelledError:
            statistics.cancelled += 1
            # At least so long it would have taken: without these the slow tail would vanish from what is known.
            self._latencies.append(self._now() - began)
            raise
        else:
            self._note_answer(endpoint)
            latency_s = self._now() - began
            self._latencies.append(latency_s)
            statistics.latency_s += latency_s
            statistics.latency_s_max = max(statistics.latency_s_max, latency_s)
            return answer
        finally:
            lease.end()
            self._dispatch()

    async def _exchange(self, endpoint: Endpoint, call: _Call[T]) -> T:
        async with self._session.post(
            endpoint.url + call.path,
            data=call.body,
            headers={"Content-Type": "application/json"},
            proxy=endpoint.proxy,
            allow_redirects=False,
        ) as response:
            raw = await _read_body(response)
            status = response.status
            rest_s = asked_pause_s(response.headers.get("Retry-After", ""))
        text = raw.decode("utf-8", errors="replace")
        if status in _REFUSED:
            self._note_answer(endpoint)
            reason = error_text(status, text, self._api_key)
            raise RequestRejected(f"{endpoint.url} refuses the request: {reason}")
        if status != 200:
            pushed_back = status == 429 or (status == 503 and rest_s is not None)
            if pushed_back:
                self._let_rest(endpoint, call.pause_s(0, self._settings) if rest_s is None else rest_s)
            reason = error_text(status, text, self._api_key)
            raise _EndpointFailed(SearchFailureKind.unavailable, reason, pushed_back=pushed_back)
        try:
            return call.read(json.loads(text))
        except (ValueError, RecursionError) as error:
            reason = "it is no JSON" if isinstance(error, json.JSONDecodeError) else str(error)[:ERROR_CHARACTERS]
            raise _EndpointFailed(SearchFailureKind.invalid, f"the answer cannot be used: {reason}") from None

    def _let_rest(self, endpoint: Endpoint, rest_s: float) -> None:
        """Leave an endpoint alone that is busy but well."""
        endpoint.rests_until = self._now() + rest_s
        self._dispatch_at(endpoint.rests_until)

    def _note_answer(self, endpoint: Endpoint) -> None:
        endpoint.circuit.succeeded()
        self._answered_at = self._now()

    def _note(self, lease: Lease, call: _Call[T], failure: _EndpointFailed) -> None:
        endpoint, text = lease.endpoint, redacted(str(failure), self._api_key)
        call.failed.add(endpoint)
        if failure.pushed_back:
            endpoint.statistics.pushed_back += 1
            endpoint.last_error = text
        else:
            endpoint.statistics.failures += 1
            self._note_failure(endpoint, text, self._now(), was_probe=lease.is_probe)

    def _note_failure(self, endpoint: Endpoint, text: str, now: float, *, was_probe: bool = False) -> None:
        endpoint.last_error = text
        if endpoint.circuit.failed(now, was_probe=was_probe):
            endpoint.statistics.opened += 1
            assert endpoint.circuit.reopens_at is not None
            self._dispatch_at(endpoint.circuit.reopens_at)

    def _dispatch_at(self, when: float) -> None:
        assert self._loop is not None
        self._loop.call_at(when, self._dispatch)

    def _now(self) -> float:
        assert self._loop is not None
        return self._loop.time()


async def _first_success(tasks: "Sequence[asyncio.Future[T]]") -> "asyncio.Future[T]":
    """Return the first task that has a result; if all fail, the first of them, which raises."""
    pending = set(tasks)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task in done and not task.cancelled() and task.exception() is None:
                return task
    return tasks[0]


async def _read_body(response: aiohttp.ClientResponse) -> bytes:
    parts, size = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise _EndpointFailed(SearchFailureKind.invalid, f"the answer has more than {MAX_ANSWER_BYTES} bytes")
    return b"".join(parts)
