"""How much memory every process of a run needs, by what it is needed for: before anything starts, from file headers.

Formulas for weights, gradients and optimizer are exact up to padding; activations, processes and the CPU's engines rest
on constants that were measured on the quickstart; ``tests/functional/test_grpo_recipe.py`` holds them against a run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from zs_nemo.cluster.setups import Layout, critic_settings
from zs_nemo.config.policy import PolicyConfig, Precision, Recompute, RecomputeMethod
from zs_nemo.config.recipe import RecipeConfig
from zs_nemo.generation.engine_setup import EngineSetup
from zs_nemo.weights.architecture import Architecture
from zs_nemo.weights.families import read_architecture

GIB = 2**30
# Values that one layer keeps for the backward pass, per token and unit of the hidden size; with the attention of packed
# sequences, which never builds a matrix of scores.
_ACTIVATIONS_PER_LAYER = 34
# Of these the inputs and outputs of the two norms: tensor parallelism cuts them with sequence_parallel alone (arXiv
# 2205.05198), and likewise a layer's input where that is all that recomputation keeps.
_WHOLE_PER_LAYER = 4
# Logits in the model's format, and in float32 their softmax and gradient; projected are policy tokens alone, but a
# micro-batch may consist of nothing else.
_LOGIT_VALUES_FLOAT32 = 3
_DRIVER_AND_RAY = {False: 1.0 * GIB, True: 4.0 * GIB}
_RANK_PROCESS = {False: 0.7 * GIB, True: 2.5 * GIB}
"""Python, torch and megatron-core on CPU; the CUDA context with NCCL's buffers on a GPU."""
_HEAP_SHARE = {False: 0.25, True: 0.05}
"""What the allocator holds beyond what is in use, as a share of it."""
_ENGINE_PROCESSES = {False: 0.55 * GIB, True: 2.5 * GIB}
"""Python, torch and vLLM on CPU; on a GPU what the process holds of it besides weights, keys and values."""
ENGINE_ASLEEP = _ENGINE_PROCESSES[True]
"""What stays of an engine on its GPU while it sleeps: no weights, keys or values."""
PARTS_OF_PASSES = frozenset({"activations", "logits", "heap"})
"""Of a rank: what is free between two of its passes."""
_ENGINE_CORE, _TENSOR_PARALLEL_WORKER = 0.5 * GIB, 0.5 * GIB
"""vLLM's own processes on CPU: there are none for one rank."""
_CPU_REQUESTS = 0.5 * GIB
"""What requests leave in an engine's heap on CPU until it is told to give it back."""


@dataclass(frozen=True, kw_only=True)
class ProcessMemory:
    """Bytes of one process by what they are for; on a GPU those of the GPU."""

    role: str
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """All parts together."""
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Every process of a run."""

    ranks: tuple[ProcessMemory, ...]
    critic_ranks: tuple[ProcessMemory, ...]
    engines: tuple[ProcessMemory, ...]
    driver: ProcessMemory

    @property
    def processes(self) -> tuple[ProcessMemory, ...]:
        """All of them."""
        return (*self.ranks, *self.critic_ranks, *self.engines, self.driver)

    @property
    def part_names(self) -> frozenset[str]:
        """The names of all parts of all processes."""
        return frozenset(name for process in self.processes for name in process.parts)

    @property
    def total(self) -> float:
        """Bytes of all processes together: what one machine without a GPU needs."""
        return sum(process.total for process in self.processes)


def plan_memory(cfg: RecipeConfig, layout: Layout) -> MemoryPlan:
    """Return the memory of a run with this configuration."""
    model, policy, critic = read_architecture(layout.policy_folder), cfg.policy, critic_settings(cfg)
    shared_critic = critic if critic is not None and not layout.num_critic_ranks else None
    stages = policy.pipeline_model_parallel_size
    ranks = []
    for rank in range(layout.num_ranks):
        # megatron-core numbers ranks with the tensor-parallel ones together and the stages farthest apart.
        stage = rank * stages // layout.num_ranks
        parts = _trained_parts(model, policy, stage, layout.num_ranks)
        if layout.has_reference:
            parts["reference"] = parts["weights"]
        parts |= _activation_parts(model, policy, stage)
        # Of two optimizers in the host's memory one at a time is on the GPU.
        room = _offload(parts, policy, _room_of_activations(parts), use_gpu=layout.use_gpu)
        if shared_critic is not None:
            critic_parts = _trained_parts(model, shared_critic, stage, layout.num_ranks, is_critic=True)
            _offload(critic_parts, shared_critic, room, use_gpu=layout.use_gpu)
            parts["critic"] = sum(critic_parts.values())
        ranks.append(_rank(f"policy-rank-{rank}", parts, use_gpu=layout.use_gpu))
    return MemoryPlan(
        ranks=tuple(ranks),
        critic_ranks=tuple(_own_critic_ranks(model, critic, layout)) if critic is not None else (),
        engines=tuple(engine_memory(setup) for setup in layout.engines),
        driver=ProcessMemory(role="driver and Ray", parts={"process": _DRIVER_AND_RAY[layout.use_gpu]}),
    )


def _own_critic_ranks(model: Architecture, critic: PolicyConfig, layout: Layout) -> list[ProcessMemory]:
    ranks = []
    for rank in range(layout.num_critic_ranks):
        stage = rank * critic.pipeline_model_parallel_size // layout.num_critic_ranks
        parts = _trained_parts(model, critic, stage, layout.num_critic_ranks, is_critic=True)
        parts |= _activation_parts(model, critic, stage, is_critic=True)
        _offload(parts, critic, _room_of_activations(parts), use_gpu=layout.use_gpu)
        ranks.append(_rank(f"critic-rank-{rank}", parts, use_gpu=layout.use_gpu))
    return ranks


def _room_of_activations(parts: Mapping[str, float]) -> float:
    """Return the bytes that are free while weights are updated, when there are no activations."""
    return parts["activations"] + parts.get("logits", 0.0)


def _offload(parts: dict[str, float], settings: PolicyConfig, room: float, *, use_gpu: bool) -> float:
    """Leave of an optimizer in the host's memory what the update needs on the GPU beyond ``room``, if it is there.

    Returns the room that another one finds afterwards.
    """
    if not settings.optim.optimizer_cpu_offload or not use_gpu:
        return room
    whole = parts["optimizer"]
    parts["optimizer"] = max(0.0, whole - room)
    return max(room, whole)


def _rank(role: str, parts: dict[str, float], *, use_gpu: bool) -> ProcessMemory:
    heap = _HEAP_SHARE[use_gpu] * sum(parts.values())
    return ProcessMemory(role=role, parts={**parts, "heap": heap, "process": _RANK_PROCESS[use_gpu]})


def stage_layers(model: Architecture, settings: PolicyConfig, stage: int) -> int:
    """Return the layers of one pipeline stage."""
    stages = settings.pipeline_model_parallel_size
    given = {0: settings.num_layers_in_first_pipeline_stage, stages - 1: settings.num_layers_in_last_pipeline_stage}
    if stages == 1:
        return model.num_layers
    fixed = {place: count for place, count in given.items() if count is not None}
    if stage in fixed:
        return fixed[stage]
    return (model.num_layers - sum(fixed.values())) // (stages - len(fixed))


def stage_parameters(model: Architecture, settings: PolicyConfig, stage: int, *, is_critic: bool = False) -> float:
    """Return the parameters that one rank of a pipeline stage holds."""
    first, last = stage == 0, stage == settings.pipeline_model_parallel_size - 1
    per_layer = sum(_size(shape) for name, shape in model.hf_shapes().items() if name.startswith("model.layers.0."))
    embedding = model.vocab_size * model.hidden_size
    count = stage_layers(model, settings, stage) * per_layer
    count += embedding if first else 0
    if last:
        count += model.hidden_size
        # A tied output layer is the embedding on the same rank, and a copy of it on another stage.
        count += 0 if is_critic or (model.tied and first) else embedding
    return count / settings.tensor_model_parallel_size


def _trained_parts(
    model: Architecture, settings: PolicyConfig, stage: int, num_ranks: int, *, is_critic: bool = False
) -> dict[str, float]:
    parameters = stage_parameters(model, settings, stage, is_critic=is_critic)
    model_ranks = settings.tensor_model_parallel_size * settings.pipeline_model_parallel_size
    # Context-parallel ranks hold copies of the weights, and share the optimizer's state as data-parallel ones do.
    copies = num_ranks // model_ranks if settings.use_distributed_optimizer else 1
    # In float32 the weights are their own master weights.
    masters = 4 if settings.precision is Precision.bf16 else 0
    return {
        "weights": parameters * _width(settings),
        "gradients": parameters * 4,
        "optimizer": parameters * (masters + 8) / copies,
    }


def _activation_parts(
    model: Architecture, settings: PolicyConfig, stage: int, *, is_critic: bool = False
) -> dict[str, float]:
    stages, tokens = settings.pipeline_model_parallel_size, settings.train_mb_tokens / settings.context_parallel_size
    layers = stage_layers(model, settings, stage)
    # Under 1F1B the first stage has as many micro-batches under way as there are stages.
    under_way = stages - stage
    values = _kept_per_unit(settings, layers) * model.hidden_size * tokens * under_way
    parts = {"activations": values * _width(settings)}
    if stage == stages - 1 and not is_critic:
        logits = tokens * model.vocab_size / settings.tensor_model_parallel_size
        parts["logits"] = logits * (_width(settings) + 4 * _LOGIT_VALUES_FLOAT32)
    return parts


def _kept_per_unit(settings: PolicyConfig, layers: int) -> float:
    """Return the values that a rank of a stage keeps for the backward pass, per token and unit of the hidden size."""
    cut = settings.tensor_model_parallel_size
    cut_with_sequences = cut if settings.sequence_parallel else 1
    per_layer = (_ACTIVATIONS_PER_LAYER - _WHOLE_PER_LAYER) / cut + _WHOLE_PER_LAYER / cut_with_sequences
    if settings.activations_checkpoint_granularity is not Recompute.full:
        # What selective recomputation saves are matrices of scores, which packed attention never has.
        return per_layer * layers
    count = min(settings.activations_checkpoint_num_layers, layers)
    if settings.activations_checkpoint_method is RecomputeMethod.uniform:
        # Inputs of the chunks, and one chunk that is being computed again.
        return -(-layers // count) / cut_with_sequences + per_layer * count
    return count / cut_with_sequences + per_layer * max(1, layers - count)


def engine_memory(setup: EngineSetup) -> ProcessMemory:
    """Return the memory of one engine; on GPUs that of each of its ranks, without keys and values."""
    weights, ranks = engine_weight_bytes(setup), setup.tensor_model_parallel_size
    if setup.use_gpu:
        parts = {"weights": weights / ranks, "process": _ENGINE_PROCESSES[True]}
        if setup.is_refit:
            # Of a tensor that comes, a copy whole and one of this rank's part, before vLLM lays it out in its place.
            parts["refit"] = _largest_tensor(setup) * (1 + 1 / ranks)
        return ProcessMemory(role=setup.name, parts=parts)
    return ProcessMemory(
        role=setup.name,
        parts={
            # The CPU kernels keep a packed copy of the weights beside them.
            "weights": 2 * weights,
            "KV cache": ranks * setup.kv_cache_gib * GIB,
            "requests": _CPU_REQUESTS,
            "process": _ENGINE_PROCESSES[False]
            + (0 if setup.in_process else _ENGINE_CORE + ranks * _TENSOR_PARALLEL_WORKER),
        },
    )


def with_planned_kv_cache(setup: EngineSetup) -> EngineSetup:
    """Return the setup of an engine that shares its GPU: keys and values get what the plan leaves of its share."""
    return replace(setup, besides_kv_gib=engine_memory(setup).total / GIB)


def engine_weight_bytes(setup: EngineSetup) -> int:
    """Return the size of all weights of an engine in its dtype: also that of one refit."""
    return parameters_of(read_architecture(Path(setup.model_path))) * bytes_per_value(setup.dtype)


def _largest_tensor(setup: EngineSetup) -> int:
    shapes = read_architecture(Path(setup.model_path)).hf_shapes()
    return max(_size(shape) for shape in shapes.values()) * bytes_per_value(setup.dtype)


def checkpoint_bytes(cfg: RecipeConfig, layout: Layout) -> float:
    """Return the size of one checkpoint: weights, float32 master weights and both moments, of a critic as well."""
    each = _width(cfg.policy) + 12
    # A critic has a number per token in place of an output layer, which is small beside the rest.
    return parameters_of(read_architecture(layout.policy_folder)) * each * (1 + layout.has_critic)


def kv_bytes_per_token(model: Architecture, *, tensor_parallel: int, dtype: str) -> float:
    """Return what one rank of an engine keeps of one token."""
    # More ranks than key/value heads hold copies of them.
    heads = max(1, model.num_kv_heads / tensor_parallel)
    return 2 * model.num_layers * heads * model.head_dim * bytes_per_value(dtype)


def parameters_of(model: Architecture) -> int:
    """Return the number of a model's parameters."""
    return sum(_size(shape) for shape in model.hf_shapes().values())


def multiplied_parameters(model: Architecture) -> int:
    """Return the parameters that a token is multiplied with: all but an embedding that is looked up alone."""
    return parameters_of(model) - (0 if model.tied else model.vocab_size * model.hidden_size)


def bytes_per_value(dtype: str) -> int:
    """Return the size of one number of ``bfloat16`` or ``float32``."""
    return 4 if dtype == "float32" else 2


def _width(settings: PolicyConfig) -> int:
    return 2 if settings.precision is Precision.bf16 else 4


def _size(shape: tuple[int, ...]) -> int:
    count = 1
    for dim in shape:
        count *= dim
    return count
