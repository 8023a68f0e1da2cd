"""A role is one actor as the driver sees it: its name, its log, its failures."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from zs_nemo.cluster import processes
from zs_nemo.cluster.processes import Place
from zs_nemo.cluster.silence import Silence
from zs_nemo.types.generation import EngineDied

STARTUP_LIMIT = "cluster.startup_timeout_s"
"""The setting that limits whatever a role is asked for before it is in use."""
_NODE_TASK_S = 15.0
_LOG_TAIL_LINES = 15
_LOG_TAIL_BYTES = 8192


class RoleError(RuntimeError):
    """A role failed or its process died. Names the role, the log, and the log's last lines."""

    role: "Role | None" = None
    """Whose error it is."""
    died: bool = False
    """Whether the process is gone, or of no use any more: another one in its place may do the same call."""
    cause: BaseException | None = None
    """What was raised in the process."""

    @classmethod
    def saying(cls, message: str, error: "RoleError") -> Self:
        """Return an error of this kind about the same failure in other words."""
        told = cls(message)
        told.role, told.died, told.cause = error.role, error.died, error.cause
        return told


class RanksLost(RoleError):  # noqa: N818  (it says what happened)
    """A training rank died, and the others of its group wait for it: only the last checkpoint can be gone on from."""


class Role:
    """One actor."""

    place: Place | None = None
    """Where it runs; known once it has started."""
    hang_timeout_s: float | None = None
    """Silence after which it hangs, where it is allowed less than others."""

    def __init__(self, name: str, actor: Any, log_path: Path) -> None:
        self.name = name
        self._actor = actor
        self.log_path = log_path
        self.silence = Silence()

    def submit(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Start a call and return Ray's reference to its result."""
        return getattr(self._actor, method).remote(*arguments, **options)

    def tell(self, method: str, *arguments: Any) -> None:
        """Start a call that nobody waits for. That it failed shows in the next one."""
        # Looked at, for Ray reports errors that nobody has seen.
        self.submit(method, *arguments).future().add_done_callback(lambda ended: ended.exception())

    async def call(self, method: str, *arguments: Any) -> Any:
        """Await a call. Cancelling the caller cancels the call in the actor too."""
        import ray

        reference = self.submit(method, *arguments)
        self.silence.asked()
        try:
            result = await reference
        except asyncio.CancelledError:
            self.silence.withdrawn()
            ray.cancel(reference)
            raise
        except ray.exceptions.RayError as error:
            self.silence.answered()
            raise self.failure(method, error) from error
        self.silence.answered()
        return result

    def end(self) -> None:
        """End the actor, and whatever it had started, wherever they run. Calls under way fail as if it had died."""
        import ray

        with suppress(ray.exceptions.RayError):
            ray.kill(self._actor)
        if self.place is not None:
            _on_machine(self.place, processes.end)

    def ask_for_stacks(self) -> None:
        """Have the role's processes write their stacks to its log."""
        if self.place is not None:
            _on_machine(self.place, processes.ask_for_stacks)

    async def stream(self, method: str, *arguments: Any) -> AsyncIterator[Any]:
        """Yield what a generator method yields. Whoever stops to listen cancels the call in the actor too."""
        import ray

        references = getattr(self._actor, method).options(num_returns="streaming").remote(*arguments)
        ended = False
        self.silence.asked()
        try:
            async for reference in references:
                part = await reference
                self.silence.answered()
                self.silence.asked()
                yield part
            ended = True
        except ray.exceptions.RayError as error:
            ended = True
            raise self.failure(method, error) from error
        finally:
            if ended:
                self.silence.answered()
            else:
                self.silence.withdrawn()
                ray.cancel(references)

    def failure(self, method: str, error: Exception) -> RoleError:
        """Turn what Ray raised into a message for a person."""
        import ray

        lost = (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError)
        cause = _cause(error)
        died = isinstance(error, lost)
        # Ray's own texts go on for a screen; the rest of them is in the exception that this one is raised from.
        summary = str(cause).strip().partition("\n")[0]
        what = f"its process died ({summary})" if died else f"{type(cause).__name__}: {summary}"
        told = RoleError(f"{self.name} failed in {method}: {what}\nlog: {self.log_path}\n{_tail(self.log_path)}")
        told.role, told.died, told.cause = self, died or isinstance(cause, EngineDied), cause
        return told


def gather(
    roles: Sequence[Role], references: Sequence[Any], method: str, timeout_s: float | None = None, setting: str = ""
) -> list[Any]:
    """Return the results in order. The first failure is raised at once, while others may still be waiting for it.

    Raises ``TimeoutError`` with the names of the roles that have not answered, and the ``setting`` that allows no more.
    """
    import ray

    role_of = dict(zip(references, roles, strict=True))
    pending = list(references)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    for role in roles:
        role.silence.asked()
    try:
        while pending:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            done, pending = ray.wait(pending, num_returns=1, timeout=left)
            if not done:
                names = ", ".join(role_of[reference].name for reference in pending)
                logs = ", ".join(str(role_of[reference].log_path) for reference in pending)
                limit = f"{timeout_s:.0f} s{setting and f' ({setting})'}"
                raise TimeoutError(f"{method}: no answer from {names} within {limit}; logs: {logs}")
            role_of[done[0]].silence.answered()
            _result(role_of[done[0]], done[0], method)
    finally:
        for reference in pending:
            role_of[reference].silence.withdrawn()
    return [_result(role_of[reference], reference, method) for reference in references]


def start_all(roles: Sequence[Role], references: Sequence[Any], timeout_s: float) -> None:
    """Wait for the ``start`` of roles, and note where they run. Raises as ``gather`` does."""
    places = gather(roles, references, "start", timeout_s, STARTUP_LIMIT)
    for role, place in zip(roles, places, strict=True):
        role.place = place


def _on_machine(place: Place, work: Callable[[Sequence[processes.ProcessId]], Any]) -> None:
    """Do something about processes on the machine that they run on, unless it cannot be reached in time."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if place.node_id == ray.get_runtime_context().get_node_id():
        work(place.processes)
        return
    there = NodeAffinitySchedulingStrategy(place.node_id, soft=False)
    with suppress(ray.exceptions.RayError):
        task = ray.remote(work).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(place.processes)
        ray.wait([task], timeout=_NODE_TASK_S)


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
