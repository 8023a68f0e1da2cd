"""Many coroutines at once, of which the first failure ends all."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def all_or_none(jobs: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run ``jobs`` at once and return their results, in their order.

    The first failure cancels the others, and is raised when they have ended: as it was, with its own cause, since
    whoever sorts failures by what they came from would not look into a group of them. A caller who is cancelled, be it
    meanwhile, gets his ``CancelledError`` then. No ``asyncio.TaskGroup``: Python 3.11's drops that for the failure, and
    leaves its own request to cancel the caller counted (``Task.cancelling``), which blinds ``asyncio.timeout``.
    """
    failures: list[BaseException] = []

    def note(task: "asyncio.Task[T]") -> None:
        if not task.cancelled() and (failure := task.exception()) is not None:
            failures.append(failure)

    running = [asyncio.create_task(job) for job in jobs]
    for task in running:
        task.add_done_callback(note)
    cancelled: asyncio.CancelledError | None = None
    is_ending = False
    while pending := [task for task in running if not task.done()]:
        try:
            await asyncio.wait(pending, return_when=asyncio.ALL_COMPLETED if is_ending else asyncio.FIRST_EXCEPTION)
        except asyncio.CancelledError as error:
            cancelled = error
        if not is_ending and (failures or cancelled):
            is_ending = True
            for task in pending:
                task.cancel()
    if cancelled:
        raise cancelled
    if failures:
        raise failures[0]
    return [task.result() for task in running]
