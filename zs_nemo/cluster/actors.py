"""The Ray actors: plain classes of other packages, each in a process of its own.

Imports nothing heavy: an actor sets the environment of its role first, and only then imports what reads it.
"""

import os
import sys
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from zs_nemo.cluster.processes import Place, answer_with_stacks, own_place
from zs_nemo.cluster.rendezvous import usable_port
from zs_nemo.types.generation import Completion, CompletionPart, SamplingParams

if TYPE_CHECKING:
    from zs_nemo.weights.transfer import TransferAddress


class _RoleProcess:
    def __init__(self, environment: dict[str, str], log_path: str) -> None:
        os.environ.update(environment)
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        # At the level of the descriptors, so that child processes and C++ code write there too.
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        answer_with_stacks()

    def _place(self) -> Place:
        import ray

        return own_place(ray.get_runtime_context().get_node_id())


class RankActor(_RoleProcess):
    """One training rank."""

    def start(self, build: Callable[[], Any]) -> Place:
        """Build the worker, and say where it is. ``build`` is called here: its imports happen in this process."""
        self._worker = build()
        return self._place()

    def address(self, port: int) -> tuple[str, int]:
        """Return this machine's address, with ``port`` or, for 0, a free one, for the ranks to meet at.

        Raises ``ValueError`` when the port is in use.
        """
        import ray

        return ray.util.get_node_ip_address(), usable_port("", port)

    def call(self, method: str, returns: bool, *arguments: Any, **options: Any) -> Any:
        """Call one of the worker's methods; without ``returns`` the result stays here."""
        result = getattr(self._worker, method)(*arguments, **options)
        return result if returns else None

    def shutdown(self) -> None:
        """Leave the process group in order."""
        self._worker.shutdown()


class EngineActor(_RoleProcess):
    """One generation engine. Asynchronous: all requests are under way at once."""

    async def start(self, build: Callable[[], Any]) -> Place:
        """Build the engine inside the event loop that will serve it, and say where it is."""
        self._engine = build()
        return self._place()

    async def check_alive(self) -> None:
        """Do nothing, unless the engine's own processes have ended."""
        await self._engine.check_alive()

    async def generate(self, prompt_ids: list[int], sampling: SamplingParams, seed: int) -> Completion:
        """Sample one completion."""
        completion: Completion = await self._engine.generate(prompt_ids, sampling, seed)
        return completion

    async def stream(self, prompt_ids: list[int], sampling: SamplingParams, seed: int) -> AsyncIterator[CompletionPart]:
        """Sample one completion part by part."""
        async for part in self._engine.stream(prompt_ids, sampling, seed):
            yield part

    async def load_weights(self, path: str, version: int) -> None:
        """Replace the weights."""
        await self._engine.load_weights(path, version)

    async def join_refit(self, address: "TransferAddress", first_number: int) -> None:
        """Join the group of a refit; the engine's ranks count from ``first_number``."""
        await self._engine.join_refit(address, first_number)

    async def receive_weights(self, version: int) -> None:
        """Replace the weights by those that the group's senders send."""
        await self._engine.receive_weights(version)

    async def set_threads(self, num_threads: int) -> None:
        """Change the number of compute threads."""
        await self._engine.set_threads(num_threads)

    async def release_memory(self) -> None:
        """Hand memory that is free back to the system."""
        await self._engine.release_memory()

    async def sleep(self) -> None:
        """Give up the GPU's memory until ``wake``."""
        await self._engine.sleep()

    async def wake(self) -> None:
        """Take up the GPU's memory again."""
        await self._engine.wake()

    async def shutdown(self) -> None:
        """End the engine's own processes."""
        await self._engine.shutdown()
