"""What the search server counts, in Prometheus' form."""

from collections import Counter as Tally

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from zs_nemo.search.admission import Admission
from zs_nemo.types.search import SearchResult

CONTENT_TYPE = CONTENT_TYPE_LATEST
_BUCKETS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class ServerMetrics:
    """Owns a registry of its own, so that several servers can live in one process."""

    def __init__(self, admission: Admission, engine: str) -> None:
        self._registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"zs_nemo_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"zs_nemo_{name}", text, registry=registry)

        self._requests = counter("requests", "HTTP requests answered", "path", "status")
        self._searches = counter("searches", "Searches ended", "outcome")
        self._passed_over = counter(
            "failures_passed_over",
            "Failed searches that were answered with an empty list in a request that did not fail",
        )
        self._cut_queries = counter("cut_queries", "Queries that were longer than this server takes and were cut")
        self._noisy = counter("noisy_searches", "Searches answered with documents that were asked to be noisy")
        self._documents = counter("documents", "Documents returned")
        self._defects = counter("defects", "Flaws of raw documents that were mended", "kind")
        self._price = counter("searches_price", "What web searches have cost, in US dollars")
        self._tokens = counter("simulator_tokens", "Tokens that a simulator read and wrote", "direction")
        self._latency = Histogram(
            "zs_nemo_search_seconds", "Time of one search from its turn on", buckets=_BUCKETS_S, registry=registry
        )
        gauge("searches_in_flight", "Searches under way").set_function(lambda: admission.num_in_flight)
        gauge("searches_queued", "Searches that wait for their turn").set_function(lambda: admission.num_queued)
        engine_gauge = Gauge("zs_nemo_engine", "The engine that is served", ["name"], registry=registry)
        engine_gauge.labels(engine).set(1)

    def count_request(self, path: str, status: int) -> None:
        """Count an answer; ``path`` is a route's, never what a client has made up."""
        self._requests.labels(path, str(status)).inc()

    def count_search(self, outcome: str, seconds: float) -> None:
        """Count a search that ended with ``ok``, the name of a failure's kind, ``error`` or ``cancelled``."""
        self._searches.labels(outcome).inc()
        self._latency.observe(seconds)

    def count_failures_passed_over(self, number: int) -> None:
        """Count searches that failed in a request that did not."""
        self._passed_over.inc(number)

    def count_cut_queries(self, number: int) -> None:
        """Count queries of which the end was not searched for."""
        self._cut_queries.inc(number)

    def count_result(self, result: SearchResult) -> None:
        """Count what a search brought."""
        self._noisy.inc(result.noisy)
        self._documents.inc(len(result.documents))
        self._price.inc(result.price)
        self._tokens.labels("read").inc(result.prompt_tokens)
        self._tokens.labels("written").inc(result.completion_tokens)
        self.count_defects(Tally(result.defects))

    def count_defects(self, defects: Tally[str]) -> None:
        """Count flaws by kind."""
        for kind, number in defects.items():
            self._defects.labels(kind).inc(number)

    def text(self) -> bytes:
        """Return the page that Prometheus reads."""
        return generate_latest(self._registry)
