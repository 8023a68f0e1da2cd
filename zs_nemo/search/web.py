"""The web, through an API of SerpAPI's form. Every request is paid for, so it is counted and has a quota.

    GET <url>?engine=google&q=...&num=3&api_key=...
    {"organic_results": [{"title": "...", "snippet": "...", "link": "https://..."}, ...], "answer_box": {...}}

The key is in the address, as the form wants it; ``http_client`` keeps addresses out of every message.
"""

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from zs_nemo.config.remote_search import WebSearchConfig
from zs_nemo.search.contents import NO_TITLE, with_title
from zs_nemo.search.http_client import HttpClient, clean_query, secret_from
from zs_nemo.types.search import Document, SearchFailure, SearchFailureKind, SearchRequest, SearchResult

_LOGGER = logging.getLogger(__name__)
_NOTHING_FOUND = "hasn't returned any results"
"""SerpAPI reports an empty answer as an error with these words."""
_ANSWER_FIELDS = ("answer", "snippet", "result")


class WebSearch:
    """Asks the web. Implements ``types.search.SearchEngine``."""

    name = "web"

    def __init__(
        self,
        settings: WebSearchConfig,
        *,
        usd_per_search: float = 0.0,
        num_searches_before: int = 0,
        place: str = "search",
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """``num_searches_before`` counts against the quota: what a resumed run has asked already.

        ``usd_per_search`` is the price of one that brings an answer.
        ``place`` is where the settings stand, for messages.
        Raises ``ValueError`` when the key's environment variable is not set.
        """
        self._settings = settings
        self._usd_per_search = usd_per_search
        self._place = place
        self._key = secret_from(settings.api_key_variable, f"{place}.api_key_variable", environment)
        self._client = HttpClient(
            self.name,
            settings.url,
            timeout_s=settings.timeout_s,
            max_concurrency=settings.max_concurrency,
            secrets=(self._key,),
            uses_proxy=True,
        )
        self.num_searches = num_searches_before
        """Requests sent in the whole run, those that failed included."""
        self._refused = False

    async def search(self, request: SearchRequest) -> SearchResult:
        """Return at most ``request.num_documents`` results; an empty query finds none without being sent.

        Raises ``SearchFailure`` (refused) when the quota is spent.
        """
        start = time.perf_counter()
        query = clean_query(request.query)
        if not query:
            return SearchResult(documents=(), source=self.name)
        self._spend_one()
        parameters = {
            "engine": self._settings.engine,
            "q": query,
            "num": str(request.num_documents),
            "api_key": self._key,
        }
        answer = await self._client.get(parameters)
        return SearchResult(
            documents=self._documents(answer)[: request.num_documents],
            source=self.name,
            latency_s=time.perf_counter() - start,
            price=self._usd_per_search,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _spend_one(self) -> None:
        quota = self._settings.max_searches
        if quota and self.num_searches >= quota:
            detail = f"web: the quota of {self._place}.max_searches={quota} is spent; raise it to go on"
            if not self._refused:
                self._refused = True
                _LOGGER.warning("%s", detail)
            raise SearchFailure(SearchFailureKind.refused, detail)
        self.num_searches += 1

    def _documents(self, answer: Any) -> tuple[Document, ...]:
        if not isinstance(answer, dict):
            raise self._client.failure(SearchFailureKind.invalid, "the answer is no JSON object")
        results = answer.get("organic_results", [])
        error = answer.get("error")
        if error is not None and not results and _NOTHING_FOUND not in str(error):
            reason = self._client.quoted(str(error))
            raise self._client.failure(SearchFailureKind.invalid, f"answered with the error {reason}")
        if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
            raise self._client.failure(SearchFailureKind.invalid, '"organic_results" is no list of objects')
        documents = [_document(result, ("snippet",)) for result in results]
        if self._settings.answer_box and isinstance(answer.get("answer_box"), dict):
            documents.insert(0, _document(answer["answer_box"], _ANSWER_FIELDS))
        return tuple(document for document in documents if document is not None)


def _document(result: Mapping[str, Any], fields: tuple[str, ...]) -> Document | None:
    """Return one result in Search-R1's form; None if it has no text to show, such as a video or a map."""
    text = next((result[field] for field in fields if isinstance(result.get(field), str) and result[field]), "")
    title, link = result.get("title"), result.get("link")
    if not text:
        return None
    title = title if isinstance(title, str) and title else NO_TITLE
    return Document(text=with_title(title, text), id=link if isinstance(link, str) else "")
