"""One vLLM engine behind the project's ``GenerationEngine`` protocol. The only place where vLLM's API is used."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from zs_nemo.generation.checkpoint_names import check_same_tensors, folder_shapes, tensor_shapes
from zs_nemo.generation.engine_setup import EngineSetup, engine_environment
from zs_nemo.generation.weight_gate import WeightGate
from zs_nemo.types.generation import Completion, CompletionPart, EngineDied, SamplingParams, StopReason

if TYPE_CHECKING:
    # It imports torch, before which an engine's environment has to be set.
    from zs_nemo.weights.transfer import TransferAddress

__all__ = ["EngineSetup", "VllmEngine"]

_PREFILL_TOKENS = 1024
_GPU_PREFILL_TOKENS, _GPU_PREFILL_TOKENS_SHARED = 8192, 2048
# Only whole blocks are found again in the prefix cache. vLLM's 128 on CPU is longer than most prompts and turns; 32 is
# the smallest that its CPU kernels are made for.
_CPU_BLOCK_TOKENS = 32
_SHUTDOWN_S = 2.0
_WEIGHTS_TO_HOST = 1
"""vLLM's sleep level."""
_DEATH_POLL_S = 0.5

T = TypeVar("T")


class VllmEngine:
    """Token ids in; sampled token ids with the logprobs of the sampled distribution out.

    Greedy decoding (temperature 0) reports logprobs of the distribution at temperature 1.

    Repeatability on CPU: a request's random numbers come from its own seed alone, whatever else is in the batch. Its
    logits do not: the batch's size picks the matrix kernels and thereby the order of summation. Measured with 16
    prompts of 48 tokens on SmolLM2-135M: asked twice one by one, all completions are equal in bfloat16 and float32;
    one by one against among 32 others, all 16 in float32 (logprobs within 3e-5), but only 6 of 16 in bfloat16, where
    a rounding sooner or later tips a token over.
    """

    def __init__(self, setup: EngineSetup) -> None:
        for name, value in engine_environment(setup).items():
            os.environ.setdefault(name, value)
        self.setup = setup
        self._tensors = folder_shapes(Path(setup.model_path))
        self._gate = WeightGate()
        self._request_numbers = itertools.count()
        self._llm = _start(setup)
        tied = getattr(self._llm.model_config.hf_config, "tie_word_embeddings", False)
        # A tied output layer is the embedding: a file may repeat it or leave it out.
        self._optional_tensors = frozenset({"lm_head.weight"} if tied else ())

    @property
    def weight_version(self) -> int:
        """Version given with the last successful ``load_weights``; 0 for the weights of ``model_path``."""
        return self._gate.version

    async def generate(self, prompt_ids: list[int], sampling: SamplingParams, seed: int) -> Completion:
        """Sample one completion; concurrent calls are batched. Waits while weights are being loaded.

        This and all that follow raise ``EngineDied`` when vLLM has failed or its processes have ended.
        """
        self._check_length(prompt_ids, sampling)
        async with self._gate.request() as version:
            output = await self._while_alive(self._run(prompt_ids, sampling, seed))
        return _completion(output, version)

    async def stream(self, prompt_ids: list[int], sampling: SamplingParams, seed: int) -> AsyncIterator[CompletionPart]:
        """Sample the completion that ``generate`` would return, and yield its text as it comes."""
        self._check_length(prompt_ids, sampling)
        async with self._gate.request() as version:
            told = 0
            async for output in self._outputs(prompt_ids, sampling, seed, whole_only=False):
                completion = _completion(output.outputs[0], version) if output.finished else None
                text = output.outputs[0].text
                yield CompletionPart(text=text[told:], completion=completion)
                told = len(text)

    async def load_weights(self, path: str, version: int) -> None:
        """Replace all weights by those of one safetensors file with Hugging Face names.

        Waits for the requests under way, holds back new ones, and drops the prefix cache. Raises ``ValueError`` before
        anything is changed when the file's tensors are not the model's.
        """
        check_same_tensors(self._tensors, tensor_shapes(Path(path)), source=path, optional=self._optional_tensors)
        async with self._gate.update(version):
            await self._rpc("refit_from_file", args=(path,))
            await self._drop_prefix_cache()

    async def join_refit(self, address: "TransferAddress", first_number: int) -> None:
        """Make every rank of this engine a member of the group at ``address``, counting from ``first_number``."""
        # vLLM sends plain values alone to its workers.
        await self._rpc("join_refit", args=(asdict(address), first_number))

    async def receive_weights(self, version: int) -> None:
        """Replace all weights by those that the sender of the joined group sends; otherwise as ``load_weights``.

        Raises ``ValueError`` when other tensors came than the model's; the engine then serves nothing.
        """
        async with self._gate.update(version):
            for given in await self._rpc("refit_from_group"):
                shapes = {name: tuple(shape) for name, shape in given}
                check_same_tensors(self._tensors, shapes, source="the refit", optional=self._optional_tensors)
            await self._drop_prefix_cache()

    async def _drop_prefix_cache(self) -> None:
        if not await self._while_alive(self._llm.reset_prefix_cache()):
            raise RuntimeError(f"{self.setup.name}: the prefix cache of the old weights could not be dropped")

    async def set_threads(self, num_threads: int) -> list[int]:
        """Compute with ``num_threads`` threads from now on, at most one per core; return the number by rank.

        On CPU only.
        """
        return await self._rpc("set_threads", args=(num_threads,))

    async def release_memory(self) -> None:
        """Hand memory that is free back to the system, for what computes while this engine does not."""
        await self._rpc("release_memory")

    async def sleep(self) -> None:
        """Free the GPU's memory once the requests under way have ended: weights go to the host's, the rest is dropped.

        Requests that come meanwhile wait for ``wake``. For a setup with ``sleeps``.
        """
        async with self._gate.alone("the engine could not be sent to sleep"):
            await self._while_alive(self._llm.sleep(level=_WEIGHTS_TO_HOST, mode="wait"))

    async def wake(self) -> None:
        """Take up the GPU's memory again, with the weights as they were."""
        await self._while_alive(self._llm.wake_up())

    async def check_alive(self) -> None:
        """Do nothing, unless vLLM has failed or its processes have ended."""
        if self._llm.errored:
            raise self._death()

    async def _rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        return list(await self._while_alive(self._llm.collective_rpc(method, args=args)))

    async def _while_alive(self, call: Coroutine[Any, Any, T]) -> T:
        """Await a call of vLLM's. Many of them wait for ever for processes that have ended meanwhile."""
        from vllm.v1.engine.exceptions import EngineDeadError

        task = asyncio.ensure_future(call)
        try:
            while not (await asyncio.wait({task}, timeout=_DEATH_POLL_S))[0]:
                await self.check_alive()
            return task.result()
        except EngineDeadError as error:
            raise self._death() from error
        finally:
            task.cancel()

    def _death(self) -> EngineDied:
        return EngineDied(
            f"{self.setup.name}: vLLM has failed or its processes have ended; its log says why, unless they were killed"
        )

    async def shutdown(self) -> None:
        """End vLLM's processes. The engine is of no use afterwards."""
        self._llm.shutdown(timeout=_SHUTDOWN_S)
        # Its destructor shuts down once more, and fails when the interpreter has got there first.
        del self._llm

    def _check_length(self, prompt_ids: list[int], sampling: SamplingParams) -> None:
        if not prompt_ids:
            raise ValueError(f"{self.setup.name}: prompt_ids is empty; give at least one token")
        wanted = len(prompt_ids) + sampling.max_tokens
        if wanted > self.setup.max_model_len:
            raise ValueError(
                f"{self.setup.name}: {len(prompt_ids)} prompt tokens and max_tokens={sampling.max_tokens} make {wanted}"
                f" tokens, more than the engine's max_model_len={self.setup.max_model_len}; ask for fewer tokens"
            )

    async def _run(self, prompt_ids: list[int], sampling: SamplingParams, seed: int) -> Any:
        outputs = [output async for output in self._outputs(prompt_ids, sampling, seed, whole_only=True)]
        assert outputs and outputs[-1].finished, f"{self.setup.name}: a request ended without an output"
        return outputs[-1].outputs[0]

    def _outputs(
        self, prompt_ids: list[int], sampling: SamplingParams, seed: int, *, whole_only: bool
    ) -> AsyncIterator[Any]:
        """Return vLLM's outputs of one request: the last one alone, or every one with all that came before it."""
        from vllm.inputs import tokens_input

        request_id = f"{self.setup.name}-{next(self._request_numbers)}"
        params = _vllm_sampling(sampling, seed, whole_only=whole_only)
        outputs: AsyncIterator[Any] = self._llm.generate(tokens_input(list(prompt_ids)), params, request_id)
        return outputs


def _start(setup: EngineSetup) -> Any:
    if setup.in_process:
        from zs_nemo.generation.inprocess_llm import InProcessLlm

        return InProcessLlm(_engine_args(setup))
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_engine_args(_engine_args(setup))


def _engine_args(setup: EngineSetup) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs

    cpu: dict[str, Any] = {
        "kv_cache_memory_bytes": int(setup.kv_cache_gib * 2**30),
        "block_size": _CPU_BLOCK_TOKENS,
        "enforce_eager": True,
        # A prompt that is prefilled in parts makes vLLM rewind its random generator, which raises on CPU.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(_PREFILL_TOKENS, setup.max_model_len),
        "distributed_executor_backend": "uni" if setup.in_process else "mp",
    }
    return AsyncEngineArgs(
        model=setup.model_path,
        dtype=setup.dtype,
        tensor_parallel_size=setup.tensor_model_parallel_size,
        max_num_seqs=setup.max_num_seqs,
        max_model_len=setup.max_model_len,
        seed=setup.seed,
        enable_prefix_caching=True,
        logprobs_mode="processed_logprobs",
        # The folder's generation_config.json would slip in top_k, top_p and repetition penalties.
        generation_config="vllm",
        worker_extension_cls="zs_nemo.generation.worker_extension.WorkerExtension",
        disable_log_stats=True,
        enable_log_requests=False,
        **(_gpu_args(setup) if setup.use_gpu else cpu),
    )


def _gpu_args(setup: EngineSetup) -> dict[str, Any]:
    shares_gpu = bool(setup.besides_kv_gib)
    return {
        # Left to itself vLLM finds the placement group that the engine's actor is in and would make Ray actors of its
        # workers, each on a bundle of one GPU; the engine's GPUs are one bundle, on one machine.
        "distributed_executor_backend": "mp" if setup.tensor_model_parallel_size > 1 else "uni",
        # Left to itself, 2048 whatever the GPU, and prompts with their documents are prefilled in many small pieces. On
        # a shared GPU less, for the activations come out of what the engine has beside keys and values.
        "max_num_batched_tokens": _GPU_PREFILL_TOKENS_SHARED if shares_gpu else _GPU_PREFILL_TOKENS,
        "gpu_memory_utilization": setup.gpu_memory_utilization,
        "enforce_eager": setup.enforce_eager,
        "kv_cache_memory_bytes": _kv_cache_bytes_on_shared_gpu(setup) if shares_gpu else None,
        "enable_sleep_mode": setup.sleeps,
    }


def _kv_cache_bytes_on_shared_gpu(setup: EngineSetup) -> int:
    from vllm.platforms import current_platform

    share = setup.gpu_memory_utilization * current_platform.get_device_total_memory()
    kv_cache = share - setup.besides_kv_gib * 2**30
    if kv_cache <= 0:
        raise ValueError(
            f"{setup.name}: gpu_memory_utilization={setup.gpu_memory_utilization:g} is {share / 2**30:.1f} GiB of the "
            f"GPU, but the weights and the process take {setup.besides_kv_gib:.1f}; raise it, or take a smaller model"
        )
    return int(kv_cache)


def _vllm_sampling(sampling: SamplingParams, seed: int, *, whole_only: bool) -> Any:
    from vllm import SamplingParams as VllmSamplingParams
    from vllm.sampling_params import RequestOutputKind

    return VllmSamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        stop=list(sampling.stop),
        include_stop_str_in_output=True,
        skip_special_tokens=False,
        spaces_between_special_tokens=False,
        seed=seed,
        logprobs=0,
        output_kind=RequestOutputKind.FINAL_ONLY if whole_only else RequestOutputKind.CUMULATIVE,
    )


def _completion(output: Any, version: int) -> Completion:
    token_ids = tuple(output.token_ids)
    logprobs = tuple(step[token].logprob for token, step in zip(token_ids, output.logprobs, strict=True))
    if output.finish_reason == "length":
        reason = StopReason.length
    elif output.finish_reason != "stop":
        raise RuntimeError(f"vLLM ended a request with finish_reason={output.finish_reason!r}; see the engine's log")
    elif isinstance(output.stop_reason, str):
        reason = StopReason.stop_string
    else:
        reason = StopReason.end_of_text
    return Completion(
        token_ids=token_ids, logprobs=logprobs, text=output.text, stop_reason=reason, weight_version=version
    )
