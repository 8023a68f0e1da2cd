"""Metrics of a run for Prometheus, served over HTTP while it is under way."""

import copy
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zs_nemo.observability.phase import Phase

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_PREFIX = "zs_nemo_"
_SEARCH_COUNTS = {
    "calls": ("searches", "Searches that were answered."),
    "failures": ("search_failures", "Search attempts that failed."),
    "prompt_tokens": ("search_prompt_tokens", "Tokens that search engines read."),
    "completion_tokens": ("search_completion_tokens", "Tokens that search engines wrote."),
}

SearchCounts = Mapping[str, Mapping[str, Mapping[str, float]]]
_Sample = tuple[dict[str, str], float]


@dataclass
class _Snapshot:
    """What is shown until the next step."""

    phase: Phase | None = None
    step: int = -1
    metrics: Mapping[str, float] = field(default_factory=dict)
    logged_at: float = 0.0
    searches: SearchCounts = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    """By evaluation and measure, as ``after_bm25_greedy/f1``."""


class MetricsServer:
    """Serves ``http://HOST:PORT/metrics`` from a thread. A ``MetricsLogger``."""

    def __init__(self, host: str, port: int, *, run: str, max_steps: int) -> None:
        """Start to serve. Raises ``ValueError`` for an address that cannot be used."""
        from prometheus_client import CollectorRegistry, start_http_server

        self._run = run
        self._max_steps = max_steps
        self._snapshot = _Snapshot()
        self._lock = threading.Lock()
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise ValueError(
                f"exp_manager.prometheus_port={port} cannot be used on exp_manager.prometheus_host={host} "
                f"({error.strerror}); choose another port, end the process that holds it, or set "
                "exp_manager.prometheus_port=0 to serve no metrics"
            ) from error

    def log(self, step: int, metrics: Mapping[str, float], phase: Phase) -> None:
        """Show the metrics of this step from now on, instead of those of the one before; scores are kept."""
        with self._lock:
            if phase is Phase.evaluation:
                self._snapshot.scores |= metrics
                return
            self._snapshot.phase, self._snapshot.step = phase, step
            self._snapshot.metrics, self._snapshot.logged_at = dict(metrics), time.time()

    def count_searches(self, counts: SearchCounts) -> None:
        """Show what the search engines were asked so far: {phase: {engine: counts}}."""
        copied = {phase: {name: dict(count) for name, count in engines.items()} for phase, engines in counts.items()}
        with self._lock:
            self._snapshot.searches = copied

    def close(self, *, finished: bool) -> None:
        """Stop to serve, and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def collect(self) -> Iterator["Metric"]:
        """Yield the metrics; Prometheus' registry calls it for every request."""
        with self._lock:
            now = copy.deepcopy(self._snapshot)
        yield from self._last_step(now)
        yield from self._scores(now)
        yield from self._searches(now)

    def _last_step(self, now: _Snapshot) -> Iterator["Metric"]:
        yield self._gauge("max_steps", "Reinforcement-learning steps of the whole run.", [({}, self._max_steps)])
        phases = [({"phase": phase.value}, float(phase is now.phase)) for phase in Phase]
        yield self._gauge("phase", "1 for the phase of the last step.", phases)
        if now.phase is not None:
            yield self._gauge("step", "The last step that ended, counted from 0 within its phase.", [({}, now.step)])
            ended: list[_Sample] = [({}, now.logged_at)]
            yield self._gauge("last_step_timestamp_seconds", "When it ended, in seconds since 1970.", ended)
        for name, value in now.metrics.items():
            yield self._gauge(re.sub(r"\W", "_", name, flags=re.ASCII), f"{name} of the last step.", [({}, value)])

    def _scores(self, now: _Snapshot) -> Iterator["Metric"]:
        by_measure: dict[str, list[_Sample]] = {}
        for name, value in now.scores.items():
            evaluation, _, measure = name.rpartition("/")
            by_measure.setdefault(measure, []).append(({"evaluation": evaluation}, value))
        for measure, samples in by_measure.items():
            yield self._gauge(f"evaluation_{measure}", "By evaluation.", samples)

    def _searches(self, now: _Snapshot) -> Iterator["Metric"]:
        from prometheus_client.core import CounterMetricFamily

        for key, (name, help_text) in _SEARCH_COUNTS.items():
            family = CounterMetricFamily(_PREFIX + name, help_text, labels=["run", "phase", "engine"])
            for phase, engines in now.searches.items():
                for engine, counts in engines.items():
                    family.add_metric([self._run, phase, engine], counts.get(key, 0))
            yield family

    def _gauge(self, name: str, help_text: str, samples: Sequence[_Sample]) -> "Metric":
        """Return one metric with its samples, each a value and the labels beside that of the run."""
        from prometheus_client.core import GaugeMetricFamily

        family = GaugeMetricFamily(_PREFIX + name, help_text, labels=["run", *samples[0][0]])
        for labels, value in samples:
            family.add_metric([self._run, *labels.values()], value)
        return family
