"""One search call within its deadline, retried with growing pauses."""

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import replace

from zs_nemo.rollout.callbacks import RolloutCallback
from zs_nemo.search.markup import without_broken_characters
from zs_nemo.types.search import (
    Document,
    RequestRejected,
    SearchFailure,
    SearchFailureKind,
    SearchRequest,
    SearchResult,
)

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
MAX_EMPTY_ANSWERS = 3
"""A simulator that has written nothing this often will not do so in a minute either: the step does not wait for it."""


async def search_within_deadline(
    callback: RolloutCallback, request: SearchRequest, deadline_s: float | None, account: Callable[[], str] = str
) -> tuple[SearchResult | None, list[SearchFailure]]:
    """Return (the result, or None when there is none to be had, and the failures on the way).

    An engine that cannot be reached or answers nonsense is asked again until the deadline: pauses double from 0.2 s to
    5 s, with jitter keyed by the request, so that many callers do not return at once. One that answers with nothing is
    asked again at once, ``MAX_EMPTY_ANSWERS`` times in all; one that refuses, rejects the request, or has no recorded
    answer, is not asked again. A ``TimeoutError`` of the callback's own, before the deadline, is an engine that cannot
    be reached; anything else but ``SearchFailure`` is a defect of the callback and is raised. None is no deadline, and
    lets that be raised too. The documents come without broken characters, whoever found them: half a character fits
    into no file. ``account`` says how the engine's servers are, for a search that its deadline ends.
    """
    give_up_at = math.inf if deadline_s is None else time.monotonic() + deadline_s
    failures: list[SearchFailure] = []
    pause = FIRST_PAUSE_S
    num_empty = 0
    while True:
        limit = asyncio.timeout(None if deadline_s is None else max(give_up_at - time.monotonic(), 0))
        try:
            async with limit:
                return _whole(await callback.search(replace(request, attempt=len(failures)))), failures
        except TimeoutError as error:
            if deadline_s is None:
                raise  # Not ours: the callback's own, and not told as a failed search.
            if limit.expired():
                told = f"before that, {failures[-1]}" if failures else account()
                text = f"no answer within {deadline_s:g} s" + (f"; {told}" if told else "")
                failures.append(SearchFailure(SearchFailureKind.timeout, text))
                return None, failures
            failures.append(SearchFailure(SearchFailureKind.unavailable, f"the search raised {error!r}"))
        except SearchFailure as failure:
            failures.append(failure)
        final = failures[-1].kind in (SearchFailureKind.refused, SearchFailureKind.missing)
        if final or isinstance(failures[-1], RequestRejected):
            return None, failures
        if failures[-1].kind is SearchFailureKind.empty:
            num_empty += 1
            if num_empty == MAX_EMPTY_ANSWERS:
                return None, failures
            continue
        wait = pause * (0.5 + request.key.uniform(f"pause/{len(failures)}"))
        if time.monotonic() + wait >= give_up_at:
            return None, failures
        await asyncio.sleep(wait)
        pause = min(2 * pause, LONGEST_PAUSE_S)


def _whole(result: SearchResult) -> SearchResult:
    documents = tuple(_whole_document(document) for document in result.documents)
    return result if documents == result.documents else replace(result, documents=documents)


def _whole_document(document: Document) -> Document:
    text, identifier = without_broken_characters(document.text), without_broken_characters(document.id)
    return replace(document, text=text, id=identifier)
