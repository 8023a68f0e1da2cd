"""Many coroutines at once, of which the first failure ends all."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def all_or_none(jobs: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run ``jobs`` at once and return their results, in their order.

    The first failure cancels the others, and is raised when they have ended: as it was, with its own cause, since
    whoever sorts failures by what they came from would not look into a group of them.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(job) for job in jobs]
    except ExceptionGroup as group:
        failure = group.exceptions[0]
    else:
        return [task.result() for task in running]
    # Not in the handler, where the group would become its context in place of what it has.
    raise failure
