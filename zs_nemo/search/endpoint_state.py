"""What is known about one endpoint: whether it may be asked, what is under way there, and what it has done so far.

Times are those of the event loop's clock, which the callers pass in.
"""

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class EndpointStatistics:
    """What one endpoint was asked since the pool was made."""

    requests: int = 0
    """Requests sent, hedges among them."""
    failures: int = 0
    """Requests that brought no answer: no connection, no answer in time, an error, an answer that is none."""
    pushed_back: int = 0
    """Requests that it refused for the moment (429, or 503 with Retry-After)."""
    hedges: int = 0
    """Requests that were sent because another endpoint was slow."""
    hedges_won: int = 0
    """Of those, the ones that answered first."""
    cancelled: int = 0
    """Requests that were given up because another endpoint was faster or the call's deadline had passed."""
    opened: int = 0
    """How often its circuit has opened."""
    latency_s: float = 0.0
    """Sum over requests that were answered."""
    latency_s_max: float = 0.0


@dataclass(kw_only=True)
class Circuit:
    """Keeps requests away from an endpoint that fails.

    Closed, all requests pass. After ``failures_to_open`` failures in a row it opens and none passes; ``open_s`` later
    one request passes as a probe (half-open). If that is answered the circuit closes, otherwise it stays open once
    more.
    """

    failures_to_open: int
    open_s: float
    failures_in_row: int = 0
    reopens_at: float | None = None
    """From when on a probe may pass; None while closed."""
    probing: bool = False

    @property
    def is_open(self) -> bool:
        """Whether requests are kept away, but for a probe."""
        return self.reopens_at is not None

    def admits(self, now: float) -> bool:
        """Whether a request may pass."""
        return self.reopens_at is None or (now >= self.reopens_at and not self.probing)

    def is_hopeless(self, now: float, *, is_looked_after: bool) -> bool:
        """Whether a request that came now would fail, as far as is known.

        ``is_looked_after`` says that health checks go on: then it is they that give hope again, not the time passed.
        """
        if self.reopens_at is None:
            return False
        return now < self.reopens_at or (is_looked_after and self.failures_in_row > 0)

    def is_up_again(self, now: float) -> None:
        """Let a probe pass from now on, since a health check found the endpoint well."""
        self.failures_in_row = 0
        self.reopens_at = now

    def succeeded(self) -> None:
        """Count an answer."""
        self.failures_in_row = 0
        self.reopens_at = None

    def failed(self, now: float, *, was_probe: bool = False) -> bool:
        """Count a failure; return whether the circuit has opened by it, or stays open once more."""
        self.failures_in_row += 1
        if was_probe or (self.reopens_at is None and self.failures_in_row >= self.failures_to_open):
            self.reopens_at = now + self.open_s
            return True
        return False


@dataclass(kw_only=True, eq=False)
class Endpoint:
    """One server."""

    url: str
    """With the version, such as http://127.0.0.1:8000/v1."""
    circuit: Circuit
    proxy: str | None = None
    """Through which it is reached."""
    in_flight: int = 0
    rests_until: float = 0.0
    """It has asked for no more requests before this time."""
    last_error: str = ""
    statistics: EndpointStatistics = field(default_factory=EndpointStatistics)

    def admits(self, now: float) -> bool:
        """Whether it may be asked at all, however busy it is."""
        return now >= self.rests_until and self.circuit.admits(now)

    def begin(self) -> "Lease":
        """Count a request in."""
        self.in_flight += 1
        self.statistics.requests += 1
        is_probe = self.circuit.is_open
        self.circuit.probing = self.circuit.probing or is_probe
        return Lease(endpoint=self, is_probe=is_probe)


@dataclass(kw_only=True)
class Lease:
    """The right to one request to an endpoint."""

    endpoint: Endpoint
    is_probe: bool

    def end(self) -> None:
        """Count the request out."""
        self.endpoint.in_flight -= 1
        if self.is_probe:
            self.endpoint.circuit.probing = False
