"""Settings of language models that are asked over HTTP, and of what is done with their answers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit

FIELDS_WE_SET = frozenset(
    {"model", "max_tokens", "temperature", "top_p", "seed", "stream", "stop", "messages", "prompt"}
)
"""Of a request for a completion."""
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")


class ApiKind(Enum):
    """Which of the OpenAI-compatible interfaces is asked."""

    completions = "/v1/completions: the prompt is raw text"
    chat = "/v1/chat/completions: the server puts the prompt into the model's chat template"


class RecordingMode(Enum):
    """What is done with the answers of earlier calls."""

    off = "nothing is written or read"
    record = "every answer is asked for and written"
    replay = "every answer is read; one that is missing is a failure, and no model is needed"
    record_missing = "what is there is read, what is missing is asked for and written"


@dataclass(kw_only=True)
class EndpointPoolConfig:
    """``search.pool``: how several endpoints are asked."""

    max_concurrency: int = 64
    """Requests under way at one endpoint; more of them wait here, first come, first served."""
    deadline_s: float = 45.0
    """Time for one completion with all its retries, from its turn on; less than ``rollout.search_deadline_s``, which
    counts the wait for a turn too, so that the reason of a failure is told. A turn is waited for as long as the
    endpoints answer others, and for so long after their last answer."""
    request_timeout_s: float = 30.0
    """Time for one request to one endpoint."""
    first_pause_s: float = 0.1
    """Pause before a call returns to an endpoint that has failed it; doubles each time, with keyed jitter."""
    longest_pause_s: float = 5.0
    failures_to_open: int = 3
    """Failures in a row after which an endpoint is left alone (the circuit opens)."""
    open_s: float = 5.0
    """How long it is left alone before one request tries it again."""
    health_interval_s: float = 10.0
    """Time between health checks in the background; 0 for none."""
    hedge_quantile: float = 0.0
    """A request that takes longer than this quantile of the latencies seen is sent to a second endpoint too, and the
    first answer counts; 0 for never, 0.95 for the slow tail."""

    def check(self, setting: str) -> None:
        """Raise ``ValueError`` for a value that cannot be. ``setting`` is where these stand: ``search.pool``."""
        for name in ("max_concurrency", "failures_to_open"):
            if getattr(self, name) < 1:
                raise ValueError(f"{setting}.{name}={getattr(self, name)} must be at least 1")
        for name in ("deadline_s", "request_timeout_s", "first_pause_s", "longest_pause_s", "open_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{setting}.{name}={getattr(self, name)} must be more than 0")
        if self.health_interval_s < 0:
            raise ValueError(f"{setting}.health_interval_s={self.health_interval_s} must be 0 (none) or positive")
        if self.request_timeout_s > self.deadline_s:
            raise ValueError(
                f"{setting}.request_timeout_s={self.request_timeout_s:g} must not be more than "
                f"{setting}.deadline_s={self.deadline_s:g}, the time for a request with its retries; lower it"
            )
        if not 0 <= self.hedge_quantile < 1:
            raise ValueError(
                f"{setting}.hedge_quantile={self.hedge_quantile} must be in [0, 1); set 0 for no second requests, "
                "0.95 to send them for the slowest twentieth"
            )


@dataclass(kw_only=True)
class RecordingConfig:
    """``search.recording``: answers kept in a file of JSON lines, for tests without a model and for resuming."""

    mode: RecordingMode = RecordingMode.off
    path: str = ""

    def __post_init__(self) -> None:
        if self.mode is not RecordingMode.off and not self.path:
            raise ValueError(
                f"search.recording.mode={self.mode.name} needs a file; set search.recording.path, or mode=off"
            )


def check_endpoints(endpoints: list[str], setting: str = "search.endpoints") -> None:
    """Raise ``ValueError`` unless every endpoint is an address without credentials, each given once.

    The key's variable is named as a neighbour of ``setting``.
    """
    for number, endpoint in enumerate(endpoints):
        if may_hold_secret(endpoint):
            raise ValueError(
                f"{setting}[{number}] must be an address such as http://127.0.0.1:8000/v1, without a user part, a "
                "query part or a fragment, and is not repeated here; give a secret by an environment variable "
                f"({setting.rpartition('.')[0]}.api_key_variable)"
            )
        try:
            parts = urlsplit(endpoint)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise ValueError(f"{setting}: {endpoint!r} must be an address such as http://127.0.0.1:8000/v1")
    if len({version_url(endpoint) for endpoint in endpoints}) < len(endpoints):
        raise ValueError(f"{setting}={endpoints} names an endpoint twice; name each once")


def version_url(address: str) -> str:
    """Return the address that ``/completions`` goes behind: one without a path of its own gets ``/v1``.

    http://host:8000 and http://host:8000/v1/ are http://host:8000/v1, https://host/v1beta/openai is what it is.
    """
    address = address.rstrip("/")
    return address if urlsplit(address).path else f"{address}/v1"


def check_extra_body(extra_body: Mapping[str, object], setting: str, *, endpoints: list[str], where: str) -> None:
    """Raise ``ValueError`` for a field that we set ourselves, and for fields that would go nowhere.

    ``where`` is the setting that names the ``endpoints``.
    """
    if taken := sorted(FIELDS_WE_SET & extra_body.keys()):
        raise ValueError(
            f"{setting} names {', '.join(taken)}, which other settings decide (the served model, its sampling and its "
            "prompt); leave it out there"
        )
    if extra_body and not endpoints:
        raise ValueError(f"{setting}={extra_body} is sent to {where}, and none are given; name them, or leave it out")


def may_hold_secret(address: str) -> bool:
    """Return whether an address, readable or not, has a part that credentials are put into; it is not to be shown."""
    return any(mark in address for mark in "@?#")


def check_variable_name(setting: str, name: str) -> None:
    """Raise unless ``name`` looks like the name of an environment variable; what may be a secret is not repeated."""
    if not _VARIABLE.fullmatch(name):
        raise ValueError(
            f"{setting} must be the NAME of an environment variable (capitals, digits and _), not the secret itself; "
            "export the secret under a name and give the name here"
        )
