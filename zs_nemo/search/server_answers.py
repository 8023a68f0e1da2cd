"""What the search server sends back: documents in the form that the client asked in, and reasons."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from zs_nemo.search.contents import split_contents, to_contents
from zs_nemo.search.markup import count_control_tags, neutralize
from zs_nemo.search.server_requests import AskedSearches
from zs_nemo.types.search import Document, SearchFailureKind, SearchResult

_STATUS_OF_FAILURE = {
    SearchFailureKind.timeout: 504,
    SearchFailureKind.unavailable: 503,
    # A quota that is spent: nobody is to ask again until somebody has raised it.
    SearchFailureKind.refused: 403,
}


def failure_status(kind: SearchFailureKind) -> int:
    """Return the HTTP status of a search that failed."""
    return _STATUS_OF_FAILURE.get(kind, 502)


def answer(asked: AskedSearches, results: Sequence[SearchResult], defects: Counter[str]) -> Any:
    """Return the JSON value of the answer. Control tags in documents are made harmless and counted in ``defects``.

    Search-R1's clients take the first line of ``contents`` for the title and show the rest, so a document without a
    title gets a line that says so. ZeroSearch's client shows ``text`` alone.
    """
    if asked.wants_list:
        return [
            {"id": document.id, "text": _harmless(document.text, defects), "score": document.score}
            for document in results[0].documents
        ]
    return {"result": [[_entry(document, asked, defects) for document in found.documents] for found in results]}


def _entry(document: Document, asked: AskedSearches, defects: Counter[str]) -> dict[str, Any]:
    contents = to_contents(_harmless(document.text, defects))
    title, text = split_contents(contents)
    shown = {"id": document.id, "contents": contents, "title": title, "text": text}
    return {"document": shown, "score": document.score} if asked.return_scores else shown


def _harmless(text: str, defects: Counter[str]) -> str:
    # A lone surrogate, which a corpus can hold, is no text that every client can read.
    text = text.encode("utf-8", "replace").decode("utf-8")
    if tags := count_control_tags(text):
        defects["control_tag"] += tags
    return neutralize(text)


def refusal(status: int, reason: str, *, retry_after_s: int | None = None) -> web.Response:
    """Return an answer without documents that says why."""
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer, Basic realm="search"'
    return web.json_response({"error": reason}, status=status, headers=headers)
