"""Equal searches are asked once: those under way together share one answer, and answers can be kept for later ones.

Which searches are equal is a matter of their keys and not of time: a seed group gives all of its equal searches the
same draw. So what is shared or found in the cache is what the search would have been answered with by itself.
"""

import asyncio
import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass, replace

from zs_nemo.config.search import SeedGroup
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.search import SearchEngine, SearchRequest, SearchResult


@dataclass(kw_only=True)
class SharingStatistics:
    """What was saved."""

    asked: int = 0
    """Searches that reached the engine."""
    shared: int = 0
    """Searches that took the answer of one that was under way."""
    cached: int = 0
    """Searches that took an answer from the cache."""
    saved_prompt_tokens: int = 0
    saved_completion_tokens: int = 0


@dataclass(eq=False)
class _Flight:
    request: SearchRequest
    task: "asyncio.Task[SearchResult]"
    num_waiting: int = 0


class SharedSearch:
    """Wraps an engine. Implements ``types.search.SearchEngine``. For one event loop at a time."""

    def __init__(self, engine: SearchEngine, seed_group: SeedGroup, cache_size: int = 0) -> None:
        """``cache_size`` bounds the answers that are kept; the least recently used goes first."""
        self.name = engine.name
        self.statistics = SharingStatistics()
        self._engine = engine
        self._seed_group = seed_group
        self._cache_size = cache_size
        self._cache: OrderedDict[SearchRequest, SearchResult] = OrderedDict()
        self._flights: dict[SearchRequest, _Flight] = {}

    async def search(self, request: SearchRequest) -> SearchResult:
        """Answer as the engine does. A result that another search has asked for costs no tokens."""
        began = time.perf_counter()
        same = shared_request(request, self._seed_group)
        if same in self._cache:
            self._cache.move_to_end(same)
            self.statistics.cached += 1
            return replace(self._saved(self._cache[same], began), is_cached=True)
        flight = self._flights.get(same)
        if flight is None:
            flight = self._flights[same] = _Flight(same, asyncio.ensure_future(self._ask(same)))
            return await self._join(flight)
        result = await self._join(flight)
        self.statistics.shared += 1
        return replace(self._saved(result, began), is_shared=True)

    async def _ask(self, request: SearchRequest) -> SearchResult:
        self.statistics.asked += 1
        result = await self._engine.search(request)
        if self._cache_size:
            self._cache[request] = result
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        return result

    async def _join(self, flight: _Flight) -> SearchResult:
        """Wait for an answer; who is cancelled ends the call only if nobody else waits for it."""
        flight.num_waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.num_waiting -= 1
            if flight.num_waiting == 0:
                # Here and not when the task ends: nobody may join a call that is being cancelled.
                if self._flights.get(flight.request) is flight:
                    del self._flights[flight.request]
                flight.task.cancel()

    def _saved(self, result: SearchResult, began: float) -> SearchResult:
        self.statistics.saved_prompt_tokens += result.prompt_tokens
        self.statistics.saved_completion_tokens += result.completion_tokens
        return replace(result, prompt_tokens=0, completion_tokens=0, latency_s=time.perf_counter() - began)


def shared_request(request: SearchRequest, group: SeedGroup) -> SearchRequest:
    """Return the request in the form that all equal ones of its seed group have.

    The question and the query take the place of what tells the members of a group apart. Whether the policy has
    searched before stays, because a simulator may be told.
    """
    request = replace(request, noise_probability=0.0)
    if group is SeedGroup.request:
        return request
    key, searched = request.key, min(request.key.turn, 1)
    if group is SeedGroup.prompt:
        key = replace(key, member=_number(request), turn=searched)
    else:
        key = SampleKey(run_seed=key.run_seed, step=0, prompt=_number(request), member=0, turn=searched)
    return replace(request, key=key)


def _number(request: SearchRequest) -> int:
    """Return a number for the question and the query: equal for equal ones."""
    text = f"{request.question}\n{request.query}"
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little")
