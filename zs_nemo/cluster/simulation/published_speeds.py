"""What others have measured on an A100, and what the model of a GPU says of the same: how far it can be trusted."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from zs_nemo.cluster.memory_plan import kv_bytes_per_token
from zs_nemo.cluster.simulation.batching_engine import BatchingEngine, EngineSpeed, EngineWork
from zs_nemo.cluster.simulation.gpu_model import GpuClusterBuilder
from zs_nemo.cluster.simulation.workload import draw_lengths
from zs_nemo.weights.architecture import Architecture

QWEN = "Qwen2.5's speed benchmark (github.com/QwenLM/Qwen2.5, docs/source/benchmark/speed_benchmark.rst): vLLM 0.6.3"
GPUSTACK = "GPUStack (docs.gpustack.ai/latest/performance-lab/qwen3-14b/a100): vLLM 0.11.0 with its defaults, ShareGPT"
_WRITTEN = 2048
"""Tokens that Qwen's benchmark generates."""
_REQUESTS, _READ, _ANSWERED, _AT_ONCE = 1000, 217, 202, 256
"""GPUStack's: requests sent at once, tokens read and written for each in the mean; and vLLM's default for an A100."""


@dataclass(frozen=True, kw_only=True)
class PublishedSpeed:
    """One measurement beside what is simulated."""

    what: str
    unit: str
    published: float
    simulated: float
    source: str
    is_fitted: bool = False
    """Whether a setting of ``simulation`` was chosen by it, so that it proves nothing."""


def published_speeds(
    builder: GpuClusterBuilder, models: Mapping[str, Architecture], spread: float
) -> list[PublishedSpeed]:
    """Return the measurements of engines on one A100; ``models`` are Qwen2.5-7B, Qwen2.5-14B and Qwen3-14B by name.

    ``spread`` is that of lengths, where only their mean is known.
    """

    def lone(name: str, read: int, tokens_per_s: float) -> PublishedSpeed:
        speed = _speed(builder, models[name], context=read + _WRITTEN / 2, room=1)
        return PublishedSpeed(
            what=f"{name}-Instruct, one sequence, {read:,} tokens read and {_WRITTEN:,} written",
            unit="tokens/s",
            published=tokens_per_s,
            simulated=1 / speed.step_s(1),
            source=QWEN,
            is_fitted=read == 1,
        )

    busy = _speed(builder, models["Qwen3-14B"], context=_READ + _ANSWERED / 2, room=_AT_ONCE)
    # While as many requests come as go, every step has its share of prompts.
    step_s = busy.step_s(_AT_ONCE) + _AT_ONCE / _ANSWERED * _READ * busy.prompt_token_s
    what = f"Qwen3-14B, {_AT_ONCE} sequences at once, {_READ} tokens read and {_ANSWERED} written"
    return [
        lone("Qwen2.5-7B", 1, 84.28),
        lone("Qwen2.5-14B", 1, 46.30),
        lone("Qwen2.5-7B", 6144, 80.70),
        lone("Qwen2.5-14B", 6144, 43.83),
        PublishedSpeed(what=what, unit="ms a token", published=114.34, simulated=1e3 * step_s, source=GPUSTACK),
        PublishedSpeed(
            what=f"the same, {_REQUESTS:,} requests to the last",
            unit="tokens/s",
            published=1887,
            simulated=_REQUESTS * _ANSWERED / _time_for_all(busy, spread),
            source=GPUSTACK,
        ),
    ]


def _speed(builder: GpuClusterBuilder, model: Architecture, *, context: float, room: int) -> EngineSpeed:
    kv_bytes = kv_bytes_per_token(model, tensor_parallel=1, dtype="bfloat16") * context
    return builder.engine_speed(model, ranks=1, kv_bytes=kv_bytes, room=room)


def _time_for_all(speed: EngineSpeed, spread: float) -> float:
    """Return when the last of the requests is done, all of them sent at once."""
    engine, ended = BatchingEngine(speed), 0.0
    for number, length in enumerate(draw_lengths(_ANSWERED, spread, _REQUESTS, np.random.default_rng(0))):
        engine.add(0.0, number, EngineWork(prompt_tokens=_READ, new_tokens=length))
    while (at := engine.next_s()) < math.inf:
        engine.finish(at)
        ended = at
    return ended
