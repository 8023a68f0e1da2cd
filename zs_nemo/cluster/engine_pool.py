"""The engines of one role behind one client: the least loaded is asked first."""

import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from zs_nemo.cluster.roles import Role, gather
from zs_nemo.types.generation import Completion, CompletionPart, SamplingParams
from zs_nemo.weights.transfer import TransferAddress


@dataclass(kw_only=True)
class EngineUsage:
    """What the engines of a role have done, for the account of a run's cost."""

    num_requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    busy_s: float = 0.0
    """Seconds with at least one request under way, summed over engines."""


class _Engine:
    def __init__(self, role: Role) -> None:
        self.role = role
        self.num_running = 0
        self._busy_since = 0.0

    def begin(self) -> None:
        if self.num_running == 0:
            self._busy_since = time.monotonic()
        self.num_running += 1

    def end(self) -> float:
        """Return the seconds of a busy stretch that ends with this request, otherwise 0."""
        self.num_running -= 1
        return time.monotonic() - self._busy_since if self.num_running == 0 else 0.0


class EnginePool:
    """Implements ``GenerationEngine`` in the driver. Used from one thread; any event loop."""

    def __init__(self, roles: Sequence[Role], num_ranks: Sequence[int], timeout_s: float = 600.0) -> None:
        """``num_ranks`` are the engines' tensor-parallel sizes."""
        self._num_ranks = list(num_ranks)
        self._engines = [_Engine(role) for role in roles]
        self._timeout_s = timeout_s
        self.usage = EngineUsage()

    async def generate(self, prompt_ids: list[int], sampling: SamplingParams, seed: int) -> Completion:
        """Sample one completion on the engine with the fewest requests under way. Raises ``RoleError``."""
        with self._least_loaded() as engine:
            completion: Completion = await engine.role.call("generate", prompt_ids, sampling, seed)
        self._count(prompt_ids, completion)
        return completion

    async def stream(self, prompt_ids: list[int], sampling: SamplingParams, seed: int) -> AsyncIterator[CompletionPart]:
        """Sample one completion as ``generate`` does, part by part. Implements ``StreamingEngine``."""
        with self._least_loaded() as engine:
            async for part in engine.role.stream("stream", prompt_ids, sampling, seed):
                if part.completion is not None:
                    self._count(prompt_ids, part.completion)
                yield part

    @contextlib.contextmanager
    def _least_loaded(self) -> Iterator[_Engine]:
        engine = min(self._engines, key=lambda engine: engine.num_running)
        engine.begin()
        try:
            yield engine
        finally:
            self.usage.busy_s += engine.end()

    def _count(self, prompt_ids: list[int], completion: Completion) -> None:
        self.usage.num_requests += 1
        self.usage.prompt_tokens += len(prompt_ids)
        self.usage.completion_tokens += len(completion.token_ids)

    def load_weights(self, path: str, version: int) -> None:
        """Load a weight file into all engines at once and wait for all of them."""
        self._call_all("load_weights", path, version)

    def join_refit(self, address: TransferAddress) -> None:
        """Join all ranks of all engines into the group of a refit, after its senders."""
        roles = [engine.role for engine in self._engines]
        firsts = [address.num_senders + sum(self._num_ranks[:index]) for index in range(len(roles))]
        references = [role.submit("join_refit", address, first) for role, first in zip(roles, firsts, strict=True)]
        gather(roles, references, "join_refit", self._timeout_s)

    def receive_weights(self, version: int) -> None:
        """Have all engines take over the weights that the group's senders send."""
        self._call_all("receive_weights", version)

    @contextlib.contextmanager
    def threads(self, num_threads: int, afterwards: int) -> Iterator[None]:
        """Let every engine compute with ``num_threads`` CPU threads while open, then with ``afterwards``.

        After an error nothing is set back: the run ends, and a dead engine's refusal would hide why.
        """
        self._call_all("set_threads", num_threads)
        yield
        self._call_all("set_threads", afterwards)

    def release_memory(self) -> None:
        """Have every engine hand memory that is free back to the system."""
        self._call_all("release_memory")

    def _call_all(self, method: str, *arguments: Any) -> None:
        roles = [engine.role for engine in self._engines]
        references = [role.submit(method, *arguments) for role in roles]
        gather(roles, references, method, self._timeout_s)
