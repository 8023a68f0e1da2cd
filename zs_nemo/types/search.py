"""What passes between an episode and a search engine."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from zs_nemo.types.keys import SampleKey


@dataclass(frozen=True, kw_only=True)
class Document:
    """One search result. Untrusted text: whoever shows it to a policy neutralises control tags first."""

    text: str
    id: str = ""
    """Identifier in the corpus; empty for a simulated document."""
    score: float = 0.0
    """Relevance as the engine reports it; 0.0 for a simulated document."""
    noisy: bool = False
    """Whether a simulator was asked to write one that does not help."""


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """One search call. It belongs to its trajectory and carries everything an engine may need to answer it."""

    query: str
    question: str
    answers: tuple[str, ...]
    """All gold answers. A simulator may see them, a real engine never reads them."""
    key: SampleKey
    """Names the trajectory and the turn; every random draw for this call derives from it."""
    num_documents: int
    attempt: int = 0
    """How often this call has failed before; a simulator draws anew, the noise coin stays."""
    noise_probability: float = 0.0
    """The curriculum's P(noisy) for this step; the callback that asks a simulator tosses the coin."""
    noisy: bool = False
    """Asks a simulator for unhelpful documents. Real engines ignore it."""
    noisy_documents: tuple[bool, ...] = ()
    """The same for every document where each has a coin of its own; ``noisy`` is then whether any is. Else empty."""


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The documents of one call with what they cost."""

    documents: tuple[Document, ...]
    """Empty when the engine works and has found nothing, which the policy is told."""
    source: str
    """Name of the engine, such as ``bm25`` or ``simulator``."""
    noisy: bool = False
    """Whether documents were asked for that do not help: all, or with a coin for each of them any."""
    latency_s: float = 0.0
    prompt_tokens: int = 0
    """Tokens a simulator read; 0 for a real engine."""
    completion_tokens: int = 0
    """Tokens a simulator wrote; 0 for a real engine."""
    price: float = 0.0
    """What was paid for the call, in US dollars; 0 for an engine that is not paid by the search."""
    is_shared: bool = False
    """Whether it is the answer to an equal search that was under way, at no cost of its own."""
    is_cached: bool = False
    """Whether it is an answer that was kept of an equal search, at no cost of its own."""
    defects: dict[str, int] = field(default_factory=dict)
    """Counts of what was wrong with the raw output and has been mended, such as ``empty``, ``cut``, ``control_tag``."""


class SearchFailureKind(Enum):
    """Why a search call brought no documents."""

    timeout = "the deadline passed"
    unavailable = "the engine could not be reached or is shutting down"
    empty = "a simulator wrote nothing that can be shown"
    invalid = "the engine answered with something that does not follow its protocol"
    refused = "the engine was not asked: what may be spent on it is spent, and trying again changes nothing"
    missing = "no answer to this call was recorded; to ask again does not help"


class SearchFailure(Exception):  # noqa: N818  (a typed outcome, not a programming error)
    """A search call that failed. It is retried within the deadline and counted; it never becomes a document."""

    def __init__(self, kind: SearchFailureKind, detail: str) -> None:
        super().__init__(f"{kind.name}: {detail}")
        self.kind = kind


class RequestRejected(SearchFailure):
    """A model's server takes no such request, be it that its prompt is too long: to send it again changes nothing."""

    def __init__(self, detail: str) -> None:
        super().__init__(SearchFailureKind.invalid, detail)


class PromptTooLong(RequestRejected):
    """A model of ours has no room for the prompt: a shorter query may pass."""


class SearchEngine(Protocol):
    """Anything that turns a query into documents: a simulator, a local index, an HTTP retriever, the web."""

    name: str

    async def search(self, request: SearchRequest) -> SearchResult:
        """Answer one request; raise ``SearchFailure`` when there is nothing to show."""
        ...
