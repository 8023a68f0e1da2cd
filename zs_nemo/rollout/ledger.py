"""Counts every search call of a run, by phase and engine, at the engine itself: no call goes by uncounted."""

import time
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass

from zs_nemo.observability.phase import PHASE_ORDER, Phase
from zs_nemo.types.search import SearchEngine, SearchFailure, SearchFailureKind, SearchRequest, SearchResult

_KEPT_EVERY_S = 5.0

State = dict[str, dict[str, dict[str, float]]]
"""{phase: {engine: counts}}, as the run directory has it."""


@dataclass
class SearchCounts:
    """What one engine was asked in one phase."""

    calls: int = 0
    """Calls that brought documents."""
    failures: int = 0
    """Calls that failed or were cut off by their deadline, whether or not a later try succeeded."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    shared: int = 0
    """Calls that took the answer of an equal one that was under way."""
    cached: int = 0
    """Calls that took an answer that was kept of an equal one."""
    busy_s: float = 0.0
    """Sum over calls; they overlap, so this can be more than the wall time."""


class SearchLedger:
    """Owns the counts. ``phase`` says to which part of the run the next calls belong."""

    def __init__(
        self,
        state: State | None = None,
        keep: Callable[[State], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``state`` is what an earlier session of the run had counted.

        ``keep`` is given the state every few seconds while searches are made, in their thread: what a killed process
        has paid for should be known to the next session.
        """
        self.phase = Phase.warm_start
        self._keep, self._clock = keep, clock
        self._kept_at = clock()
        self._counts: defaultdict[str, defaultdict[str, SearchCounts]] = defaultdict(lambda: defaultdict(SearchCounts))
        for phase, engines in (state or {}).items():
            for name, counts in engines.items():
                # A version before this one may have counted something else besides.
                known = {field: value for field, value in counts.items() if field in SearchCounts.__dataclass_fields__}
                self._counts[phase][name] = SearchCounts(**known)  # type: ignore[arg-type]

    def watch(self, engine: SearchEngine) -> "WatchedSearch":
        """Return the engine, counted. Only what this returns may be called."""
        return WatchedSearch(engine, self)

    def counts(self, engine: str) -> SearchCounts:
        """Return the counts of one engine in the current phase, to be added to."""
        return self._counts[self.phase.value][engine]

    def asked(self, engine: str, phases: Collection[Phase] = PHASE_ORDER) -> int:
        """Return how often an engine was asked so far, failed calls included: in the whole run, or in these phases."""
        names = {phase.value for phase in phases}
        counted = [engines[engine] for phase, engines in self._counts.items() if phase in names and engine in engines]
        return sum(counts.calls + counts.failures for counts in counted)

    def state(self) -> State:
        """Return {phase: {engine: counts}}, for the run directory."""
        # Copied first: searches may be under way in another thread.
        return {
            phase: {name: asdict(counts) for name, counts in list(engines.items())}
            for phase, engines in list(self._counts.items())
        }

    def keep_now_and_then(self) -> None:
        """Give the state to ``keep`` if it has not been for a while."""
        if self._keep is not None and self._clock() - self._kept_at >= _KEPT_EVERY_S:
            self._kept_at = self._clock()
            self._keep(self.state())


class WatchedSearch:
    """A search engine whose calls are counted; otherwise as the one that it wraps."""

    def __init__(self, engine: SearchEngine, ledger: SearchLedger) -> None:
        self.name = engine.name
        self._engine = engine
        self._ledger = ledger

    async def search(self, request: SearchRequest) -> SearchResult:
        """Pass the request on; raise what the engine raises."""
        counts = self._ledger.counts(self.name)
        began = time.monotonic()
        try:
            result = await self._engine.search(request)
        except BaseException as error:
            # A call that its deadline cancelled has reached the engine all the same; one that was refused has not.
            refused = isinstance(error, SearchFailure) and error.kind is SearchFailureKind.refused
            counts.failures += not refused
            raise
        else:
            counts.calls += 1
            counts.prompt_tokens += result.prompt_tokens
            counts.completion_tokens += result.completion_tokens
            counts.shared += result.is_shared
            counts.cached += result.is_cached
            return result
        finally:
            counts.busy_s += time.monotonic() - began
            self._ledger.keep_now_and_then()
