"""Whether a run fits on GPUs: what stands on each of them, and which layout of the policy would fit.

The constants for a GPU's processes are careful guesses. Of a rank's activations ``memory_plan`` says 42.5 GiB where a
step of a 1.5B model took 40 on an H100, and 33.5 where Transformer Engine's layers took 24 (docs/cluster.md).
"""

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

from zs_nemo.cluster.memory_plan import (
    ENGINE_ASLEEP,
    GIB,
    PARTS_OF_PASSES,
    MemoryPlan,
    engine_memory,
    kv_bytes_per_token,
    plan_memory,
)
from zs_nemo.cluster.placement import place_run
from zs_nemo.cluster.setups import Layout
from zs_nemo.config.policy import PolicyConfig
from zs_nemo.config.recipe import RecipeConfig
from zs_nemo.generation.engine_setup import EngineSetup
from zs_nemo.weights.families import read_architecture

_PARTS_KNOWN_EXACTLY = ("weights", "gradients", "optimizer", "reference", "critic")


@dataclass(frozen=True, kw_only=True)
class GpuLoad:
    """One GPU."""

    number: int
    roles: tuple[tuple[str, float], ...]
    """(role, bytes); an engine's are the share that vLLM reserves for it."""

    @property
    def total(self) -> float:
        """Bytes of all roles together."""
        return sum(size for _, size in self.roles)


def plan_gpus(
    cfg: RecipeConfig, layout: Layout, num_gpus: int, gpu_bytes: float, *, exact_only: bool = False
) -> list[GpuLoad]:
    """Return what stands on each GPU when most does. Raises ``ValueError`` as ``place_run`` does.

    ``exact_only`` counts of the ranks what is known exactly, without activations and the like.
    """
    plan = plan_memory(cfg, layout)
    placement = place_run(layout, num_gpus, cfg.generation.refit_transport)

    def loads(kept: Container[str], engine_bytes: Callable[[EngineSetup], float]) -> list[GpuLoad]:
        roles: dict[int, list[tuple[str, float]]] = {}
        for process, (bundle, _) in zip((*plan.ranks, *plan.critic_ranks), placement.ranks, strict=True):
            size = sum(value for name, value in process.parts.items() if name in kept)
            roles.setdefault(_first_gpu(placement.bundles, bundle), []).append((process.role, size))
        for setup, (bundle, _) in zip(layout.engines, placement.engines, strict=True):
            first = _first_gpu(placement.bundles, bundle)
            for gpu in range(first, first + setup.tensor_model_parallel_size):
                roles.setdefault(gpu, []).append((setup.name, engine_bytes(setup)))
        return [GpuLoad(number=number, roles=tuple(roles.get(number, ()))) for number in range(num_gpus)]

    def awake(setup: EngineSetup) -> float:
        return setup.gpu_memory_utilization * gpu_bytes

    whole = plan.part_names if not exact_only else _PARTS_KNOWN_EXACTLY
    training = loads(whole, lambda setup: ENGINE_ASLEEP if setup.sleeps else awake(setup))
    # Engines that wake up have the ranks free what is for their passes. Without such engines this is never the most.
    episodes = loads(set(whole) - PARTS_OF_PASSES, awake)
    return [max(pair, key=lambda load: load.total) for pair in zip(training, episodes, strict=True)]


def with_kv_cache(plan: MemoryPlan, layout: Layout, gpu_bytes: float) -> MemoryPlan:
    """Return the plan with the engines' keys and values: what their share of a GPU leaves for them."""
    engines = [
        replace(engine, parts={**engine.parts, "KV cache": max(0.0, share * gpu_bytes - engine.total)})
        for engine, share in zip(plan.engines, (each.gpu_memory_utilization for each in layout.engines), strict=True)
    ]
    return replace(plan, engines=tuple(engines))


def _first_gpu(bundles: tuple[dict[str, float], ...], bundle: int) -> int:
    return int(sum(each["GPU"] for each in bundles[:bundle]))


def misfits(
    cfg: RecipeConfig, layout: Layout, num_gpus: int, gpu_bytes: float, *, exact_only: bool = False
) -> list[str]:
    """Return why the run does not fit, GPU by GPU and engine by engine; nothing if it does."""
    problems = [
        f"GPU {load.number} would hold "
        + " + ".join(f"{role} {size / GIB:.1f}" for role, size in load.roles)
        + f" = {load.total / GIB:.1f} GiB of {gpu_bytes / GIB:.1f}"
        for load in plan_gpus(cfg, layout, num_gpus, gpu_bytes, exact_only=exact_only)
        if load.total > gpu_bytes
    ]
    return problems + [problem for setup in layout.engines if (problem := _engine_misfit(setup, gpu_bytes))]


def _engine_misfit(setup: EngineSetup, gpu_bytes: float) -> str | None:
    """Return what an engine lacks: it needs room for its weights and one sequence of full length to answer at all."""
    model, ranks = read_architecture(Path(setup.model_path)), setup.tensor_model_parallel_size
    one_sequence = setup.max_model_len * kv_bytes_per_token(model, tensor_parallel=ranks, dtype=setup.dtype)
    weights = engine_memory(replace(setup, use_gpu=True)).total
    share = setup.gpu_memory_utilization * gpu_bytes
    if weights + one_sequence <= share:
        return None
    return (
        f"{setup.name} needs {weights / GIB:.1f} GiB and {one_sequence / GIB:.2f} GiB for one sequence of "
        f"{setup.max_model_len} tokens on each of its {ranks} GPUs, but gpu_memory_utilization="
        f"{setup.gpu_memory_utilization:g} gives it {share / GIB:.1f} GiB"
    )


def propose_layout(cfg: RecipeConfig, layout: Layout, num_gpus: int, gpu_bytes: float) -> PolicyConfig | None:
    """Return the policy's settings with the least model parallelism that fits on these GPUs; None if none does."""
    return first_layout(cfg, layout, lambda proposed: not misfits(proposed, layout, num_gpus, gpu_bytes))


def first_layout(cfg: RecipeConfig, layout: Layout, fits: Callable[[RecipeConfig], bool]) -> PolicyConfig | None:
    """Return the policy's settings with the least model parallelism with which a run ``fits``; None if none does."""
    for settings in _layouts(cfg, layout):
        try:
            proposed = replace(cfg, policy=settings)
        except ValueError:
            # The machines refuse it: tensor parallelism would span nodes.
            continue
        if fits(proposed):
            return settings
    return None


def overrides_of(before: PolicyConfig, after: PolicyConfig) -> str:
    """Return the overrides that make ``before`` the layout ``after``, both sizes among them in any case."""
    always = ("tensor_model_parallel_size", "pipeline_model_parallel_size")
    values = {each.name: getattr(after, each.name) for each in fields(after)}
    changed = {name: value for name, value in values.items() if name in always or value != getattr(before, name)}
    return " ".join(
        f"policy.{name}={'null' if value is None else str(value).lower()}" for name, value in changed.items()
    )


def _layouts(cfg: RecipeConfig, layout: Layout) -> Iterator[PolicyConfig]:
    """Yield layouts that the model and the ranks allow, the one with the fewest ranks a model first."""
    model = read_architecture(layout.policy_folder)
    sizes = [
        (tensor, pipeline)
        for tensor in range(1, layout.num_ranks + 1)
        for pipeline in range(1, layout.num_ranks // tensor + 1)
        if layout.num_ranks % (tensor * pipeline) == 0
    ]
    # Of two that cut the model into as many parts, tensor parallelism wastes no time in a pipeline's ends.
    for tensor, pipeline in sorted(sizes, key=lambda size: (size[0] * size[1], size[1])):
        try:
            model.check_layout(tensor_parallel=tensor, pipeline_parallel=pipeline)
        except ValueError:
            continue
        yield replace(
            cfg.policy,
            tensor_model_parallel_size=tensor,
            pipeline_model_parallel_size=pipeline,
            context_parallel_size=1,
            sequence_parallel=cfg.policy.sequence_parallel and tensor > 1,
            num_layers_in_first_pipeline_stage=None,
            num_layers_in_last_pipeline_stage=None,
            stochastic_rounding=cfg.policy.stochastic_rounding and pipeline == 1,
        )


def local_gpus() -> tuple[int, float]:
    """Return number and memory in bytes of this machine's GPUs, of the smallest; (0, 0.0) without one."""
    import torch

    count = torch.cuda.device_count()
    sizes = [torch.cuda.get_device_properties(index).total_memory for index in range(count)]
    return count, float(min(sizes, default=0))


def check_gpus(cfg: RecipeConfig, layout: Layout, gpus: tuple[int, float]) -> None:
    """Raise ``ValueError`` when what is known exactly does not fit on this machine's GPUs."""
    num_gpus, gpu_bytes = gpus
    if problems := misfits(cfg, layout, num_gpus, gpu_bytes, exact_only=True):
        raise ValueError(f"{problems[0]}; see what would fit with recipes/plan.py and the same settings")
