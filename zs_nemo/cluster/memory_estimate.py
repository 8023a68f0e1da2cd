"""How much memory a run on CPU will need, before it starts. Constants were measured on the quickstart."""

from pathlib import Path

from zs_nemo.cluster.setups import Layout, critic_settings
from zs_nemo.config.policy import PolicyConfig, Precision
from zs_nemo.config.recipe import RecipeConfig
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


def estimate_memory(cfg: RecipeConfig, layout: Layout) -> dict[str, int]:
    """Return bytes by kind of process, all processes of a kind together."""
    ranks = layout.num_ranks * _rank_bytes(cfg, layout)
    if layout.num_critic_ranks:
        ranks += layout.num_critic_ranks * _critic_rank_bytes(cfg, layout)
    return {
        "driver and Ray": int(_DRIVER_AND_RAY),
        f"{layout.num_ranks + layout.num_critic_ranks} training ranks": ranks,
        f"{len(layout.engines)} engines": sum(_engine_bytes(setup) for setup in layout.engines),
    }


def _engine_bytes(setup: EngineSetup) -> int:
    ranks = setup.tensor_model_parallel_size
    # The CPU kernels keep a packed copy of the weights while they are being loaded.
    fixed = _ENGINE_PROCESSES + (ranks * _TENSOR_PARALLEL_WORKER if ranks > 1 else 0)
    return int(fixed + 2 * weight_bytes(setup) + ranks * setup.kv_cache_gib * _GIB)


def _rank_bytes(cfg: RecipeConfig, layout: Layout) -> int:
    width = 2 if cfg.policy.precision is Precision.bf16 else 4
    reference = num_parameters(layout.policy_folder) * width if layout.has_reference else 0
    model_ranks = cfg.policy.tensor_model_parallel_size * cfg.policy.pipeline_model_parallel_size
    num_trained = 2 if layout.has_critic and not layout.num_critic_ranks else 1
    trained = num_trained * _trained_bytes(cfg.policy, layout.policy_folder, layout.num_ranks)
    return int(_RANK_PROCESS + reference / model_ranks + trained + _activation_bytes(cfg.policy, layout))


def _critic_rank_bytes(cfg: RecipeConfig, layout: Layout) -> int:
    settings = critic_settings(cfg)
    assert settings is not None
    trained = _trained_bytes(settings, layout.policy_folder, layout.num_critic_ranks)
    return int(_RANK_PROCESS + trained + _activation_bytes(settings, layout))


def _trained_bytes(settings: PolicyConfig, folder: Path, num_ranks: int) -> float:
    """Return what one rank holds of a trained model beside activations."""
    model_ranks = settings.tensor_model_parallel_size * settings.pipeline_model_parallel_size
    # Weights, float32 gradients, and float32 master weights with two moments of Adam, which may be sharded.
    optimizer = 12 / (num_ranks // model_ranks if settings.use_distributed_optimizer else 1)
    width = 2 if settings.precision is Precision.bf16 else 4
    return num_parameters(folder) / model_ranks * (width + 4 + optimizer)


def _activation_bytes(settings: PolicyConfig, layout: Layout) -> float:
    model = read_architecture(layout.policy_folder)
    width = 2 if settings.precision is Precision.bf16 else 4
    per_token = _ACTIVATIONS_PER_LAYER * model.num_layers * model.hidden_size * width + model.vocab_size * _LOGIT_BYTES
    model_ranks = settings.tensor_model_parallel_size * settings.pipeline_model_parallel_size
    return settings.train_mb_tokens * per_token / model_ranks
