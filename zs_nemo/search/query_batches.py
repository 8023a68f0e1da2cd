"""Merges lookups that come at about the same time into one request."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from zs_nemo.types.search import Document

Found = Sequence[tuple[Document, ...]]
"""The documents of each query of a request, in order."""


class _Batch:
    """Queries that are still being collected for one request."""

    def __init__(self) -> None:
        self.queries: list[str] = []
        self.is_full = asyncio.Event()
        self.request: asyncio.Task[Found]


class QueryBatches:
    """Collects lookups for ``window_s`` from the first on, or until there are ``max_queries``, and asks once.

    A caller that is cancelled takes no other caller with it; a failure is the failure of all in the request.
    """

    def __init__(
        self, ask: Callable[[Sequence[str], int], Awaitable[Found]], *, window_s: float, max_queries: int
    ) -> None:
        self._ask = ask
        self._window_s = window_s
        self._max_queries = max_queries
        self._open: dict[int, _Batch] = {}
        """By the number of documents a query."""
        self._requests: set[asyncio.Task[Found]] = set()

    async def lookup(self, query: str, num_documents: int) -> tuple[Document, ...]:
        """Return the documents of one query; raise ``SearchFailure``."""
        batch = self._open.get(num_documents)
        if batch is None:
            batch = self._open[num_documents] = _Batch()
            batch.request = asyncio.create_task(self._collect_and_ask(batch, num_documents))
            # The loop itself holds its tasks weakly.
            self._requests.add(batch.request)
            batch.request.add_done_callback(self._forget)
        place = len(batch.queries)
        batch.queries.append(query)
        if len(batch.queries) == self._max_queries:
            self._close(batch, num_documents)
        return (await asyncio.shield(batch.request))[place]

    async def _collect_and_ask(self, batch: _Batch, num_documents: int) -> Found:
        try:
            async with asyncio.timeout(self._window_s):
                await batch.is_full.wait()
        except TimeoutError:
            self._close(batch, num_documents)
        return await self._ask(batch.queries, num_documents)

    def _close(self, batch: _Batch, num_documents: int) -> None:
        """Let later lookups begin another request."""
        if self._open.get(num_documents) is batch:
            del self._open[num_documents]
        batch.is_full.set()

    def _forget(self, request: asyncio.Task[Found]) -> None:
        self._requests.discard(request)
        if not request.cancelled():
            request.exception()  # Seen here, asyncio does not complain when every caller was cancelled.
