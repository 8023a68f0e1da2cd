"""A role is one actor as the driver sees it: its name, its log, its failures."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

_LOG_TAIL_LINES = 15
_LOG_TAIL_BYTES = 8192


class RoleError(RuntimeError):
    """A role failed or its process died. Names the role, the log, and the log's last lines."""


class Role:
    """One actor."""

    def __init__(self, name: str, actor: Any, log_path: Path) -> None:
        self.name = name
        self._actor = actor
        self.log_path = log_path

    def submit(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Start a call and return Ray's reference to its result."""
        return getattr(self._actor, method).remote(*arguments, **options)

    async def call(self, method: str, *arguments: Any) -> Any:
        """Await a call. Cancelling the caller cancels the call in the actor too."""
        import ray

        reference = self.submit(method, *arguments)
        try:
            return await reference
        except asyncio.CancelledError:
            ray.cancel(reference)
            raise
        except ray.exceptions.RayError as error:
            raise self.failure(method, error) from error

    async def stream(self, method: str, *arguments: Any) -> AsyncIterator[Any]:
        """Yield what a generator method yields. Whoever stops to listen cancels the call in the actor too."""
        import ray

        references = getattr(self._actor, method).options(num_returns="streaming").remote(*arguments)
        ended = False
        try:
            async for reference in references:
                yield await reference
            ended = True
        except ray.exceptions.RayError as error:
            ended = True
            raise self.failure(method, error) from error
        finally:
            if not ended:
                ray.cancel(references)

    def failure(self, method: str, error: Exception) -> RoleError:
        """Turn what Ray raised into a message for a person."""
        import ray

        died = isinstance(error, ray.exceptions.RayActorError)
        cause = _cause(error)
        # Ray's own texts go on for a screen; the rest of them is in the exception that this one is raised from.
        summary = str(cause).strip().partition("\n")[0]
        what = f"its process died ({summary})" if died else f"{type(cause).__name__}: {summary}"
        return RoleError(f"{self.name} failed in {method}: {what}\nlog: {self.log_path}\n{_tail(self.log_path)}")


def gather(roles: Sequence[Role], references: Sequence[Any], method: str, timeout_s: float | None = None) -> list[Any]:
    """Return the results in order. The first failure is raised at once, while others may still be waiting for it.

    Raises ``TimeoutError`` with the names of the roles that have not answered.
    """
    import ray

    role_of = dict(zip(references, roles, strict=True))
    pending = list(references)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while pending:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        done, pending = ray.wait(pending, num_returns=1, timeout=left)
        if not done:
            names = ", ".join(role_of[reference].name for reference in pending)
            logs = ", ".join(str(role_of[reference].log_path) for reference in pending)
            raise TimeoutError(f"{method}: no answer from {names} within {timeout_s:.0f} s; logs: {logs}")
        _result(role_of[done[0]], done[0], method)
    return [_result(role_of[reference], reference, method) for reference in references]


def _result(role: Role, reference: Any, method: str) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        raise role.failure(method, error) from error


def _cause(error: Exception) -> BaseException:
    # as_instanceof_cause() mixes Ray's class into the original one; the original is underneath.
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError as error:
        return f"(the log cannot be read: {error})"
    return "\n".join(f"  | {line}" for line in lines[-_LOG_TAIL_LINES:])
