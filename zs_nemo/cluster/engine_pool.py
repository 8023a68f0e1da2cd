"""The engines of one role behind one client: the least loaded is asked first, and one that dies is replaced."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from zs_nemo.cluster.roles import STARTUP_LIMIT, RanksLost, Role, RoleError, gather
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


class EngineReplacer(Protocol):
    """Puts another engine in the place of a dead one."""

    def claim(self, error: RoleError) -> None:
        """Take one replacement out of the budget; raise ``error`` when there is none left."""
        ...

    def replace(self, dead: Role) -> Role:
        """Return an engine that has started as the dead one had; raise ``RoleError`` or ``TimeoutError``."""
        ...


LoadWeights = Callable[[Role, int], None]
"""Gives one engine the policy's weights of a version."""


class OneEngine:
    """One engine as the receiver of a refit."""

    def __init__(self, role: Role, startup_timeout_s: float) -> None:
        self._role = role
        self._timeout_s = startup_timeout_s

    def load_weights(self, path: str, version: int) -> None:
        """Load a weight file. The engine is not in use yet, so no watchdog looks at it."""
        reference = self._role.submit("load_weights", path, version)
        gather([self._role], [reference], "load_weights", self._timeout_s, STARTUP_LIMIT)


class _Engine:
    def __init__(self, role: Role) -> None:
        self.role = role
        self.num_running = 0
        self.successor: Future[None] | None = None
        """There while the engine is being replaced."""
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
    """Implements ``GenerationEngine`` in the driver. Requests come from one thread, in any event loop.

    An engine that dies is replaced in the background, with the weights and threads that the pool was given last. What
    it was asked is asked again, of another engine or of the new one, with the same seed: what becomes of an episode
    does not depend on it, apart from the rounding that an engine's batches decide.

    Calls of engines in use have no time limit: the watchdog ends an engine that hangs, which fails them like a death.
    """

    def __init__(
        self,
        roles: Sequence[Role],
        num_ranks: Sequence[int],
        replacer: EngineReplacer | None = None,
        load_weights: LoadWeights | None = None,
        startup_timeout_s: float = 300.0,
    ) -> None:
        """``num_ranks`` are the engines' tensor-parallel sizes; without ``replacer`` a death is an error.

        ``load_weights`` is there for engines whose weights are not those of their folder for long. A new engine is to
        be where the others are within ``startup_timeout_s``.
        """
        self._num_ranks = list(num_ranks)
        self._engines = [_Engine(role) for role in roles]
        self._startup_timeout_s = startup_timeout_s
        self._replacer = replacer
        self._load_one = load_weights
        self._version: int | None = None
        self._num_threads: int | None = None
        self._lock = threading.Lock()
        self.is_asleep = False
        """Whether the engines have given their GPUs' memory up."""
        self.num_replaced = 0
        """Engines that were replaced so far."""
        self.usage = EngineUsage()
        self.is_busy = False
        """Whether a request is under way at any engine."""
        self.on_turn: Callable[[], None] | None = None
        """Called when ``is_busy`` has changed; before the first request is sent."""

    @property
    def num_processes(self) -> int:
        """Processes that compute, over all engines."""
        return sum(self._num_ranks)

    @property
    def is_replacing(self) -> bool:
        """Whether an engine is on its way to take a dead one's place."""
        return bool(self._successors())

    @property
    def roles(self) -> list[Role]:
        """The engines as they are now."""
        return [engine.role for engine in self._engines]

    async def generate(self, prompt_ids: list[int], sampling: SamplingParams, seed: int) -> Completion:
        """Sample one completion on the engine with the fewest requests under way. Raises ``RoleError``."""
        while True:
            engine = await self._least_loaded()
            role = engine.role
            self._begin(engine)
            try:
                completion: Completion = await role.call("generate", prompt_ids, sampling, seed)
                break
            except RoleError as error:
                self._lose(engine, role, error)
            finally:
                self._end(engine)
        self._count(prompt_ids, completion)
        return completion

    async def stream(self, prompt_ids: list[int], sampling: SamplingParams, seed: int) -> AsyncIterator[CompletionPart]:
        """Sample one completion as ``generate`` does, part by part. Implements ``StreamingEngine``.

        An engine that dies before the first part costs nothing; parts that somebody has seen cannot be taken back.
        """
        has_told = False
        while True:
            engine = await self._least_loaded()
            role = engine.role
            self._begin(engine)
            try:
                async for part in role.stream("stream", prompt_ids, sampling, seed):
                    has_told = True
                    if part.completion is not None:
                        self._count(prompt_ids, part.completion)
                    yield part
                return
            except RoleError as error:
                self._lose(engine, role, error)
                if has_told:
                    raise
            finally:
                self._end(engine)

    def _begin(self, engine: _Engine) -> None:
        engine.begin()
        self._look_busy()

    def _end(self, engine: _Engine) -> None:
        self.usage.busy_s += engine.end()
        self._look_busy()

    def _look_busy(self) -> None:
        is_busy = any(engine.num_running for engine in self._engines)
        if is_busy != self.is_busy:
            self.is_busy = is_busy
            if self.on_turn is not None:
                self.on_turn()

    def _count(self, prompt_ids: list[int], completion: Completion) -> None:
        self.usage.num_requests += 1
        self.usage.prompt_tokens += len(prompt_ids)
        self.usage.completion_tokens += len(completion.token_ids)

    def load_weights(self, path: str, version: int) -> None:
        """Load a weight file into all engines at once and wait for all of them."""
        # Before the call: an engine that is replaced in it is given these weights.
        self._version = version
        self._call_all("load_weights", path, version)

    def join_refit(self, address: TransferAddress) -> None:
        """Join all ranks of all engines into the group of a refit, after its senders."""
        roles = self.roles
        firsts = [address.num_senders + sum(self._num_ranks[:index]) for index in range(len(roles))]
        references = [role.submit("join_refit", address, first) for role, first in zip(roles, firsts, strict=True)]
        gather(roles, references, "join_refit")

    def receive_weights(self, version: int) -> None:
        """Have all engines take over the weights that the group's senders send."""
        # No engine is replaced here: the senders wait for the one that is gone.
        references = [role.submit("receive_weights", version) for role in self.roles]
        gather(self.roles, references, "receive_weights")
        self._version = version

    def set_threads(self, num_threads: int) -> None:
        """Let every engine compute with ``num_threads`` CPU threads from now on."""
        self._num_threads = num_threads
        self._call_all("set_threads", num_threads)

    def lend_threads(self, num_threads: int) -> None:
        """Do as ``set_threads``, without waiting: engines change between two of their passes."""
        if num_threads == self._num_threads:
            return
        self._num_threads = num_threads
        for engine in self._engines:
            # One that is being replaced comes with the number that holds then.
            if engine.successor is None:
                engine.role.tell("set_threads", num_threads)

    def release_memory(self) -> None:
        """Have every engine hand memory that is free back to the system."""
        self._call_all("release_memory")

    def sleep(self) -> None:
        """Have every engine give up its GPU's memory, with its weights in the host's, until ``wake``."""
        if not self.is_asleep:
            # Before the call: an engine that is replaced in it is sent to sleep as well.
            self.is_asleep = True
            self._call_all("sleep")

    def wake(self) -> None:
        """Have every engine that sleeps take up its GPU's memory again."""
        if self.is_asleep:
            self.is_asleep = False
            self._call_all("wake")

    def heal(self) -> None:
        """Find out engines that have died, and wait until all are replaced."""
        self._call_all("check_alive")

    def _call_all(self, method: str, *arguments: Any) -> None:
        """Call every engine; one that dies in it is replaced by one that is as the call would have left it."""
        self._settle()
        engines = [(engine, engine.role, engine.role.submit(method, *arguments)) for engine in self._engines]
        for engine, role, reference in engines:
            try:
                gather([role], [reference], method)
            except RoleError as error:
                self._lose(engine, role, error)
        self._settle()

    def _settle(self) -> None:
        """Wait for the replacements under way; raise when one of them fails."""
        for successor in self._successors():
            successor.result()

    def _successors(self) -> "list[Future[None]]":
        # The thread that replaces an engine takes its own away: looked at once.
        return [successor for engine in self._engines if (successor := engine.successor) is not None]

    async def _least_loaded(self) -> _Engine:
        while True:
            coming = self._successors()
            for successor in coming:
                if successor.done():
                    # Only one that failed is still there.
                    successor.result()
            serving = [engine for engine in self._engines if engine.successor is None]
            if serving:
                return min(serving, key=lambda engine: engine.num_running)
            waiting = [asyncio.wrap_future(successor) for successor in coming]
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in waiting:
                    each.cancel()

    def _lose(self, engine: _Engine, role: Role, error: RoleError) -> None:
        """Begin to replace a dead engine, if that has not been done; raise any other error, and one over the budget."""
        with self._lock:
            if engine.role is not role or engine.successor is not None:
                return
            if not error.died or self._replacer is None:
                raise error
            self._replacer.claim(error)
            successor = engine.successor = Future()
            # It cannot be cancelled: those who wait for it may give up, but it is for all.
            successor.set_running_or_notify_cancel()
            threading.Thread(target=self._replace, args=(engine, successor, self._replacer), daemon=True).start()

    def _replace(self, engine: _Engine, successor: "Future[None]", replacer: EngineReplacer) -> None:
        role = None
        while role is None:
            try:
                role = self._started(engine.role, replacer)
            except Exception as error:  # noqa: BLE001  (the border of a thread: who waits for the engine gets it)
                try:
                    if not isinstance(error, RoleError) or isinstance(error, RanksLost):
                        raise
                    replacer.claim(error)
                except Exception as last:  # noqa: BLE001
                    successor.set_exception(last)
                    return
        with self._lock:
            engine.role, engine.successor = role, None
            self.num_replaced += 1
        successor.set_result(None)

    def _started(self, dead: Role, replacer: EngineReplacer) -> Role:
        role = replacer.replace(dead)
        try:
            self._restore(role)
        except BaseException:
            role.end()
            raise
        return role

    def _restore(self, role: Role) -> None:
        """Bring a new engine to where the others are."""
        if self._version is not None and self._load_one is not None:
            self._load_one(role, self._version)
        if self._num_threads is not None:
            self._call_new(role, "set_threads", self._num_threads)
        if self.is_asleep:
            self._call_new(role, "sleep")

    def _call_new(self, role: Role, method: str, *arguments: Any) -> None:
        gather([role], [role.submit(method, *arguments)], method, self._startup_timeout_s, STARTUP_LIMIT)
