"""vLLM's engine in a thread of this process."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

_LOGGER = logging.getLogger(__name__)


class InProcessLlm:
    """Has the calls of vLLM's ``AsyncLLM`` that ``VllmEngine`` makes, without its engine-core process.

    On CPU that process costs a second import of vLLM, some 15 s of a slow core, and 0.5 GiB; what it brings, tokens
    turned into text beside the next forward pass, is little beside a pass on CPU.
    One thread makes every call of vLLM, passes included: OpenMP's number of threads is that of the calling thread.
    """

    def __init__(self, engine_args: Any) -> None:
        """Start the engine; raise what its start raises."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vllm")
        self._streams: dict[str, tuple[asyncio.AbstractEventLoop, asyncio.Queue[Any]]] = {}
        self._failure: BaseException | None = None
        self._stepping = False
        self._closing = False
        self._engine: Any = self._thread.submit(_start, engine_args).result()
        self.model_config = self._engine.model_config

    @property
    def errored(self) -> bool:
        """Whether the engine has failed, and serves nothing any more."""
        return self._failure is not None

    async def generate(self, prompt: Any, params: Any, request_id: str) -> AsyncIterator[Any]:
        """Yield the outputs of a request; a caller that stops early ends it."""
        outputs: asyncio.Queue[Any] = asyncio.Queue()
        self._streams[request_id] = asyncio.get_running_loop(), outputs
        finished = False
        try:
            await self._call(self._add, request_id, prompt, params)
            while not finished:
                output = await outputs.get()
                if isinstance(output, BaseException):
                    raise self._dead() from output
                finished = output.finished
                yield output
        finally:
            del self._streams[request_id]
            if not (finished or self.errored or self._closing):
                self._thread.submit(self._engine.abort_request, [request_id])

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        """Call a method of every worker, between two passes; return what they return."""
        return list(await self._call(self._engine.collective_rpc, method, None, args))

    async def reset_prefix_cache(self) -> bool:
        """Forget the keys and values of all prompts; return whether that could be done."""
        return bool(await self._call(self._engine.reset_prefix_cache))

    def shutdown(self, timeout: float) -> None:
        """End the engine; do not wait for longer than ``timeout`` seconds for a pass to end."""
        # A pass that comes after it would fail on what is gone.
        self._closing = True
        ended = self._thread.submit(self._engine.engine_core.shutdown)
        wait([ended], timeout)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        if self.errored:
            raise self._dead() from self._failure
        return await asyncio.wrap_future(self._thread.submit(function, *args))

    def _add(self, request_id: str, prompt: Any, params: Any) -> None:
        self._engine.add_request(request_id, prompt, params)
        if not self._stepping:
            self._stepping = True
            self._submit_pass()

    def _submit_pass(self) -> None:
        # Behind the calls that have come meanwhile.
        self._thread.submit(self._pass).add_done_callback(self._after_pass)

    def _pass(self) -> None:
        if self._closing:
            return
        for output in self._engine.step():
            self._deliver(output.request_id, output)
        self._stepping = self._engine.has_unfinished_requests() and not self._closing
        if self._stepping:
            self._submit_pass()

    def _after_pass(self, ended: "Future[None]") -> None:
        if ended.cancelled() or ended.exception() is None:
            return
        self._failure = ended.exception()
        _LOGGER.error("vLLM's engine has failed", exc_info=self._failure)
        for request_id in list(self._streams):
            self._deliver(request_id, self._failure)

    def _deliver(self, request_id: str, output: Any) -> None:
        loop, outputs = self._streams.get(request_id, (None, None))
        if loop is not None and outputs is not None and not loop.is_closed():
            loop.call_soon_threadsafe(outputs.put_nowait, output)

    def _dead(self) -> Exception:
        from vllm.v1.engine.exceptions import EngineDeadError

        return EngineDeadError(f"vLLM's engine has failed: {self._failure!r}")


def _start(engine_args: Any) -> Any:
    from vllm.v1.engine.llm_engine import LLMEngine

    return LLMEngine.from_engine_args(engine_args)
