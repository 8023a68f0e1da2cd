"""Settings of the real search engines that are reached by HTTP: a retriever and the web."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from zs_nemo.config.endpoints import check_variable_name, may_hold_secret
from zs_nemo.config.search import SearchConfig


@dataclass(kw_only=True)
class RetrieverSearchConfig(SearchConfig):
    """``search=retriever``: a real engine behind Search-R1's protocol, such as a dense retriever or our own server."""

    url: str = "http://127.0.0.1:8000"
    """Address of the server, with or without ``/retrieve`` at its end."""
    return_scores: bool = True
    """Ask for scores, as Search-R1's trainer does; false for a server that cannot give any."""
    token_variable: str = ""
    """Name of the environment variable that holds the bearer token; empty sends none."""
    timeout_s: float = 30.0
    """Time for one request, with the pauses that a busy server (429, 503) asks for."""
    max_concurrency: int = 64
    """Requests under way at once."""
    batch_window_s: float = 0.0
    """Searches that come within this time go into one request; 0 sends every one by itself."""
    max_batch_queries: int = 64
    """Queries of one request; only with ``batch_window_s``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_http_url("search.url", self.url)
        if self.token_variable:
            check_variable_name("search.token_variable", self.token_variable)
        _check_client(self.timeout_s, self.max_concurrency)
        if self.batch_window_s < 0 or self.max_batch_queries < 1:
            raise ValueError(
                f"search.batch_window_s={self.batch_window_s} must not be negative (0 is off) and "
                f"search.max_batch_queries={self.max_batch_queries} must be at least 1"
            )


@dataclass(kw_only=True)
class WebSearchConfig(SearchConfig):
    """``search=web``: the web, through an API of SerpAPI's form. Costs money: see ``max_searches``,
    and ``cost.usd_per_1000_searches`` for its price."""

    url: str = "https://serpapi.com/search.json"
    engine: str = "google"
    """The API's name of the search engine."""
    api_key_variable: str = "SERPAPI_API_KEY"
    """Name of the environment variable that holds the key."""
    timeout_s: float = 30.0
    """Time for one request, with the pauses that a busy server (429, 503) asks for."""
    max_concurrency: int = 16
    """Requests under way at once."""
    max_searches: int = 1000
    """Quota of a whole run, or of a search server from its start on, failed requests included; 0 for none. What is
    asked beyond it is refused unsent."""
    answer_box: bool = True
    """Take the box above the results, where there is one, as the first document."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_http_url("search.url", self.url)
        address = urlsplit(self.url)
        if address.scheme != "https" and address.hostname not in ("127.0.0.1", "::1", "localhost"):
            raise ValueError(
                f"search.url={self.url!r} would send the API key in the clear; name an https address (http is for "
                "this machine alone)"
            )
        check_variable_name("search.api_key_variable", self.api_key_variable)
        _check_client(self.timeout_s, self.max_concurrency)
        if self.max_searches < 0:
            raise ValueError(f"search.max_searches={self.max_searches} must be 0 (no limit) or positive")


def check_http_url(setting: str, url: str) -> None:
    """Raise unless ``url`` is the http(s) address of a host. A credential in it is refused, and not repeated."""
    if may_hold_secret(url):
        raise ValueError(
            f"{setting} holds a user part or parameters, and an address is written into logs; name the environment "
            "variable with the credential instead"
        )
    try:
        address = urlsplit(url)
        valid = address.scheme in ("http", "https") and bool(address.hostname) and (address.port or 1) > 0
    except ValueError:
        raise ValueError(f"{setting} cannot be read as an address; write it as http://HOST:PORT") from None
    if not valid:
        raise ValueError(f"{setting}={url!r} must be an http or https address, such as http://127.0.0.1:8000")


def _check_client(timeout_s: float, max_concurrency: int) -> None:
    if not timeout_s > 0:
        raise ValueError(f"search.timeout_s={timeout_s} must be positive")
    if max_concurrency < 1:
        raise ValueError(f"search.max_concurrency={max_concurrency} must be at least 1")
