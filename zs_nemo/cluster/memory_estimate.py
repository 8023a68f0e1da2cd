"""How much memory a run on CPU will need, before it starts. Constants were measured on the quickstart."""

from pathlib import Path

from zs_nemo.cluster.setups import Layout
from zs_nemo.config.grpo import GrpoRecipeConfig
from zs_nemo.config.policy import Precision
from zs_nemo.generation.checkpoint_names import num_parameters
from zs_nemo.generation.engine_setup import EngineSetup
from zs_nemo.weights.families import read_architecture

_GIB = 2**30
_DRIVER_AND_RAY = 1.5 * _GIB
_RANK_PROCESS = 0.7 * _GIB
_ENGINE_PROCESSES = 1.0 * _GIB
_TENSOR_PARALLEL_WORKER = 0.5 * _GIB
# Values that one layer keeps for the backward pass, per token and unit of the hidden size.
_ACTIVATIONS_PER_LAYER = 34
# Logits, their log-softmax and their gradient, float32.
_LOGIT_BYTES = 3 * 4


def bytes_per_value(dtype: str) -> int:
    """Return the size of one number of ``bfloat16`` or ``float32``."""
    return 4 if dtype == "float32" else 2


def weight_bytes(setup: EngineSetup) -> int:
    """Return the size of an engine's weights in its dtype."""
    return num_parameters(Path(setup.model_path)) * bytes_per_value(setup.dtype)


def estimate_memory(cfg: GrpoRecipeConfig, layout: Layout) -> dict[str, int]:
    """Return bytes by kind of process, all processes of a kind together."""
    return {
        "driver and Ray": int(_DRIVER_AND_RAY),
        f"{layout.num_ranks} training ranks": layout.num_ranks * _rank_bytes(cfg, layout),
        f"{len(layout.engines)} engines": sum(_engine_bytes(setup) for setup in layout.engines),
    }


def _engine_bytes(setup: EngineSetup) -> int:
    ranks = setup.tensor_model_parallel_size
    # The CPU kernels keep a packed copy of the weights while they are being loaded.
    fixed = _ENGINE_PROCESSES + (ranks * _TENSOR_PARALLEL_WORKER if ranks > 1 else 0)
    return int(fixed + 2 * weight_bytes(setup) + ranks * setup.kv_cache_gib * _GIB)


def _rank_bytes(cfg: GrpoRecipeConfig, layout: Layout) -> int:
    policy, model = cfg.policy, read_architecture(layout.policy_folder)
    model_ranks = policy.tensor_model_parallel_size * policy.pipeline_model_parallel_size
    data_parallel = layout.num_ranks // model_ranks
    width = 2 if policy.precision is Precision.bf16 else 4
    # Weights, float32 gradients, and float32 master weights with two moments of Adam, which may be sharded.
    optimizer = 12 / (data_parallel if policy.use_distributed_optimizer else 1)
    per_parameter = width + 4 + optimizer + (width if layout.has_reference else 0)
    parameters = num_parameters(layout.policy_folder) / model_ranks
    activations = (
        _ACTIVATIONS_PER_LAYER * model.num_layers * model.hidden_size * width + model.vocab_size * _LOGIT_BYTES
    )
    return int(_RANK_PROCESS + parameters * per_parameter + policy.train_mb_tokens * activations / model_ranks)
