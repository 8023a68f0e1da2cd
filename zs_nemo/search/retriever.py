"""A real search engine behind Search-R1's protocol: dense retrieval, or anything else that speaks it.

    POST <url>/retrieve  {"queries": ["..."], "topk": 3, "return_scores": true}
    {"result": [[{"document": {"id": "7", "contents": "\\"Title\\"\\ntext"}, "score": 0.7}, ...]]}

One list a query, best first; without ``return_scores`` the entries are the documents themselves. Servers in use differ
in details, and all of these are understood: an entry without a score, a document that is a plain text, one with
``title`` and ``text`` in place of ``contents``, numbers as identifiers, more documents than were asked for.
"""

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from zs_nemo.config.remote_search import RetrieverSearchConfig
from zs_nemo.search.contents import from_contents, with_title
from zs_nemo.search.http_client import HttpClient, clean_query, secret_from
from zs_nemo.search.query_batches import QueryBatches
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.search import Document, SearchFailure, SearchFailureKind, SearchRequest, SearchResult

_PATH = "/retrieve"
_TRIAL_QUERY = "capital of Peru"


class RetrieverSearch:
    """Asks a retrieval server. Implements ``types.search.SearchEngine``."""

    name = "retriever"

    def __init__(self, settings: RetrieverSearchConfig, environment: Mapping[str, str] = os.environ) -> None:
        """Read the token from ``environment``; raise ``ValueError`` when its variable is not set."""
        self._url = settings.url
        self._num_documents = settings.num_documents
        self._return_scores = settings.return_scores
        base = settings.url.rstrip("/")
        self._client = HttpClient(
            self.name,
            base if base.endswith(_PATH) else base + _PATH,
            timeout_s=settings.timeout_s,
            max_concurrency=settings.max_concurrency,
            bearer_token=secret_from(settings.token_variable, "search.token_variable", environment),
        )
        self._batches: QueryBatches | None = None
        if settings.batch_window_s:
            self._batches = QueryBatches(
                self._lookup, window_s=settings.batch_window_s, max_queries=settings.max_batch_queries
            )

    async def search(self, request: SearchRequest) -> SearchResult:
        """Return at most ``request.num_documents`` documents; an empty query finds none without being sent."""
        start = time.perf_counter()
        query = clean_query(request.query)
        documents: tuple[Document, ...] = ()
        if query and self._batches is not None:
            documents = await self._batches.lookup(query, request.num_documents)
        elif query:
            (documents,) = await self._lookup([query], request.num_documents)
        return SearchResult(documents=documents, source=self.name, latency_s=time.perf_counter() - start)

    def check_served(self, place: str = "search") -> None:
        """Raise ``ValueError`` unless the server answers a query; ``place`` is where the settings stand.

        Not for a running event loop.
        """
        try:
            asyncio.run(self._try_out())
        except SearchFailure as failure:
            raise ValueError(
                f"{place}.url={self._url!r} does not answer a query as Search-R1's protocol has it ({failure}); start "
                f"the server, or mend {place}.url, and {place}.token_variable where it asks for a token"
            ) from failure

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _try_out(self) -> None:
        key = SampleKey(run_seed=0, step=0, prompt=0, member=0)
        query = SearchRequest(query=_TRIAL_QUERY, question="", answers=(), key=key, num_documents=self._num_documents)
        try:
            await self.search(query)
        finally:
            # They belong to this event loop.
            await self.aclose()

    async def _lookup(self, queries: Sequence[str], num_documents: int) -> Sequence[tuple[Document, ...]]:
        payload = {"queries": list(queries), "topk": num_documents, "return_scores": self._return_scores}
        answer = await self._client.post(payload)
        try:
            return parse_answer(answer, len(queries), num_documents)
        except ValueError as error:
            problem = str(error)
        raise self._client.failure(SearchFailureKind.invalid, problem)


def parse_answer(answer: Any, num_queries: int, num_documents: int) -> list[tuple[Document, ...]]:
    """Return the documents of every query; raise ``ValueError`` saying what does not follow the protocol."""
    result = answer.get("result") if isinstance(answer, dict) else None
    if not isinstance(result, list):
        raise ValueError('the answer is no object with a list "result"')
    if len(result) != num_queries:
        raise ValueError(f'"result" has {len(result)} entries for {num_queries} queries')
    found = []
    for number, entries in enumerate(result):
        if not isinstance(entries, list):
            raise ValueError(f'"result", entry {number}: is no list of documents')
        found.append(tuple(_document(entry, number) for entry in entries[:num_documents]))
    return found


def _document(entry: Any, number: int) -> Document:
    score = 0.0
    document = entry
    if isinstance(entry, dict) and "document" in entry:
        document, score = entry["document"], entry.get("score", 0.0)
    if isinstance(document, str):
        document = {"contents": document}
    if not isinstance(document, dict):
        raise ValueError(f'"result", entry {number}: a document is neither an object nor a text')
    text = _text(document)
    identifier = document.get("id", "")
    if text is None:
        raise ValueError(f'"result", entry {number}: a document has no text "contents"')
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise ValueError(f'"result", entry {number}: the score {score!r} is no number')
    return Document(text=text, id="" if identifier is None else str(identifier), score=float(score))


def _text(document: Mapping[str, Any]) -> str | None:
    contents, title, text = (document.get(name) for name in ("contents", "title", "text"))
    if isinstance(contents, str):
        return from_contents(contents)
    if isinstance(text, str):
        return with_title(title, text) if isinstance(title, str) and title else text
    return None
