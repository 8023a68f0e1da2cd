"""BM25 for a server: the lookup is arithmetic, and on the event loop it would keep everybody else waiting."""

import asyncio
import time
from concurrent.futures import Executor

from zs_nemo.search.bm25 import Bm25Search
from zs_nemo.types.search import SearchRequest, SearchResult


class ThreadedBm25:
    """Runs lookups on an executor of the caller's. Implements ``types.search.SearchEngine``."""

    name = Bm25Search.name

    def __init__(self, engine: Bm25Search, executor: Executor) -> None:
        self._engine = engine
        self._executor = executor

    async def search(self, request: SearchRequest) -> SearchResult:
        """Return what the engine finds."""
        start = time.perf_counter()
        documents = await asyncio.get_running_loop().run_in_executor(
            self._executor, self._engine.lookup, request.query, request.num_documents
        )
        return SearchResult(documents=documents, source=self.name, latency_s=time.perf_counter() - start)
