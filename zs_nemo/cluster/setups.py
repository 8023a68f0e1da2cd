"""What every process of a run is told, derived from the configuration. Knows the roles, not Ray."""

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from zs_nemo.cluster.accelerator import uses_gpu
from zs_nemo.cluster.cpu_threads import shared_threads, usable_cores
from zs_nemo.cluster.native_precision import native_precision
from zs_nemo.config.algorithm import KlPlace
from zs_nemo.config.policy import PolicyConfig, Precision
from zs_nemo.config.recipe import PpoRecipeConfig, RecipeConfig
from zs_nemo.config.search import SimulatedSearchConfig
from zs_nemo.config.sft_simulator import SftSimulatorRecipeConfig
from zs_nemo.generation.engine_setup import EngineSetup
from zs_nemo.weights.pretrained import resolve_model

_SHORTEST_COLLECTIVE_TIMEOUT_S = 3600.0
"""Ranks that hang are the watchdog's matter, sooner; others may have a slow file system to wait for."""
_DTYPE_OF = {Precision.bf16: "bfloat16", Precision.fp32: "float32"}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The processes of a run."""

    num_ranks: int
    """Of the policy; 0 for a recipe that trains nothing."""
    num_critic_ranks: int
    """Of the critic alone; 0 without a critic, or with one on the policy's ranks."""
    policy_folder: Path
    policy_engines: tuple[EngineSetup, ...]
    """None for a recipe that samples from no model."""
    simulator_engines: tuple[EngineSetup, ...]
    use_gpu: bool
    has_reference: bool
    has_critic: bool

    @property
    def engines(self) -> tuple[EngineSetup, ...]:
        """All engines, the policy's first."""
        return self.policy_engines + self.simulator_engines

    @property
    def num_processes(self) -> int:
        """All ranks and engines."""
        return self.num_ranks + self.num_critic_ranks + len(self.engines)


def derive_layout(cfg: RecipeConfig, *, use_gpu: bool | None = None) -> Layout:
    """Resolve the models and, with ``use_gpu`` None, decide on CPU or GPU.

    Raises ``ValueError`` for a missing model or GPU.
    """
    if use_gpu is None:
        use_gpu = uses_gpu(cfg)
    policy_folder = resolve_model(cfg.policy.model, setting="policy.model")
    return Layout(
        num_ranks=cfg.trainer.num_nodes * cfg.trainer.devices if cfg.has_ranks else 0,
        num_critic_ranks=cfg.critic.num_ranks if isinstance(cfg, PpoRecipeConfig) else 0,
        policy_folder=policy_folder,
        policy_engines=_policy_engines(cfg, policy_folder, use_gpu) if cfg.has_engines else (),
        simulator_engines=_simulator_engines(cfg, use_gpu) if cfg.has_engines else (),
        use_gpu=use_gpu,
        has_reference=cfg.has_ranks and cfg.has_engines and cfg.algorithm.kl.where is not KlPlace.off,
        has_critic=isinstance(cfg, PpoRecipeConfig),
    )


def derive_simulator(cfg: RecipeConfig) -> tuple[tuple[EngineSetup, ...], bool]:
    """Return the simulator's engines and whether they run on GPUs. Raises ``ValueError`` as ``derive_layout`` does."""
    use_gpu = uses_gpu(cfg)
    setups = _simulator_engines(cfg, use_gpu)
    if not use_gpu and not cfg.cluster.threads_per_process:
        # Nothing but the simulator computes here.
        processes = sum(setup.tensor_model_parallel_size for setup in setups)
        threads = shared_threads([processes], usable_cores())
        setups = tuple(replace(setup, threads=threads) for setup in setups)
    return setups, use_gpu


def _policy_engines(cfg: RecipeConfig, folder: Path, use_gpu: bool) -> tuple[EngineSetup, ...]:
    settings = cfg.generation
    assert cfg.policy.precision is not Precision.auto, "settled() comes first"
    dtype = _DTYPE_OF[cfg.policy.precision] if settings.dtype == "auto" else settings.dtype
    return tuple(
        EngineSetup(
            name=f"policy-engine-{index}",
            model_path=str(folder),
            dtype=dtype,
            is_refit=cfg.has_ranks,
            tensor_model_parallel_size=settings.tensor_model_parallel_size,
            kv_cache_gib=settings.kv_cache_gib,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            enforce_eager=settings.enforce_eager,
            sleeps=settings.sleep_while_training,
            max_num_seqs=settings.max_num_seqs,
            max_model_len=cfg.rollout.max_sequence_tokens,
            threads=cfg.cluster.threads_per_process,
            use_gpu=use_gpu,
            seed=cfg.seed,
        )
        for index in range(settings.num_engines)
    )


def _simulator_engines(cfg: RecipeConfig, use_gpu: bool) -> tuple[EngineSetup, ...]:
    settings = cfg.search
    if not isinstance(settings, SimulatedSearchConfig) or not settings.needs_engines:
        return ()
    folder = resolve_model(settings.model, setting="search.model")
    dtype = _DTYPE_OF[native_precision(use_gpu)] if settings.dtype == "auto" else settings.dtype
    return tuple(
        EngineSetup(
            name=f"simulator-engine-{index}",
            model_path=str(folder),
            dtype=dtype,
            tensor_model_parallel_size=settings.tensor_model_parallel_size,
            kv_cache_gib=settings.kv_cache_gib,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            enforce_eager=settings.enforce_eager,
            sleeps=settings.sleep_while_training,
            max_num_seqs=settings.max_num_seqs,
            max_model_len=settings.max_sequence_tokens,
            threads=cfg.cluster.threads_per_process,
            use_gpu=use_gpu,
            seed=cfg.seed,
        )
        for index in range(settings.num_engines)
    )


def num_updates(cfg: RecipeConfig) -> int:
    """Return the policy's optimizer updates in a whole run, for its learning-rate schedule.

    It is the most that there can be: steps of which groups are left out or trajectories lost may make fewer.
    """
    if isinstance(cfg, SftSimulatorRecipeConfig):
        return cfg.trainer.max_steps
    warmup = cfg.algorithm.critic_warmup_steps if isinstance(cfg, PpoRecipeConfig) else 0
    return max(1, (cfg.trainer.max_steps - warmup) * _updates_per_step(cfg, cfg.policy.global_batch_size))


def num_critic_updates(cfg: RecipeConfig) -> int:
    """Return the critic's optimizer updates in a whole run, likewise."""
    if not isinstance(cfg, PpoRecipeConfig):
        return 1
    return max(1, cfg.trainer.max_steps * cfg.critic.num_epochs * _updates_per_step(cfg, cfg.critic_batch_size))


def _updates_per_step(cfg: RecipeConfig, global_batch_size: int) -> int:
    trajectories = cfg.rollout.num_prompts_per_step * cfg.rollout.num_generations_per_prompt
    return math.ceil(trajectories / global_batch_size)


def critic_settings(cfg: RecipeConfig) -> PolicyConfig | None:
    """Return the critic's settings in the form of the policy's; None without a critic."""
    if not isinstance(cfg, PpoRecipeConfig):
        return None
    critic = cfg.critic
    settings = replace(
        cfg.policy,
        optim=critic.optim,
        gradient_clip_val=critic.gradient_clip_val,
        global_batch_size=cfg.critic_batch_size,
    )
    if critic.num_ranks == 0:
        return settings
    return replace(
        settings,
        tensor_model_parallel_size=critic.tensor_model_parallel_size,
        pipeline_model_parallel_size=critic.pipeline_model_parallel_size,
        context_parallel_size=critic.context_parallel_size,
        sequence_parallel=settings.sequence_parallel and critic.tensor_model_parallel_size > 1,
        num_layers_in_first_pipeline_stage=None,
        num_layers_in_last_pipeline_stage=None,
    )


def rank_builder(cfg: RecipeConfig, layout: Layout, rank: int, address: tuple[str, int]) -> partial[Any]:
    """Return the call that builds one of the policy's ranks; its process makes it."""
    return partial(
        _build_rank,
        **_rank_fields(cfg, layout, rank, address),
        world_size=layout.num_ranks,
        policy=cfg.policy,
        critic=None if layout.num_critic_ranks else critic_settings(cfg),
        with_reference=layout.has_reference,
    )


def critic_rank_builder(cfg: RecipeConfig, layout: Layout, rank: int, address: tuple[str, int]) -> partial[Any]:
    """Return the call that builds one of the critic's own ranks; its process makes it."""
    settings = critic_settings(cfg)
    return partial(
        _build_rank,
        **_rank_fields(cfg, layout, rank, address),
        world_size=layout.num_critic_ranks,
        policy=settings,
        critic=settings,
        with_policy=False,
        with_reference=False,
    )


def _rank_fields(cfg: RecipeConfig, layout: Layout, rank: int, address: tuple[str, int]) -> dict[str, Any]:
    return {
        "rank": rank,
        "master_addr": address[0],
        "master_port": address[1],
        "model_path": str(layout.policy_folder),
        "temperature": cfg.generation.temperature,
        "max_steps": num_updates(cfg),
        "critic_max_steps": num_critic_updates(cfg),
        "seed": cfg.seed,
        "use_gpu": layout.use_gpu,
        "max_grad_norm": cfg.guards.max_grad_norm,
        "collective_timeout_s": max(_SHORTEST_COLLECTIVE_TIMEOUT_S, cfg.faults.hang_timeout_s),
    }


def engine_builder(setup: EngineSetup) -> partial[Any]:
    """Return the call that builds one engine; its process makes it."""
    return partial(_build_engine, setup)


def rank_environment(cfg: RecipeConfig, use_gpu: bool) -> dict[str, str]:
    """Return what a training rank's process must have in its environment before torch is imported."""
    environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if use_gpu:
        # megatron-core's tensor parallelism counts on this order of kernels and communication.
        return environment | {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    assert cfg.cluster.threads_per_process, "settled() comes first"
    return environment | {
        "OMP_NUM_THREADS": str(cfg.cluster.threads_per_process),
        "TORCHDYNAMO_DISABLE": "1",
        # Huge pages for large tensors: activations come and go, and each page of 4 KiB would cost a fault every time.
        "THP_MEM_ALLOC_ENABLE": "1",
    }


def _build_rank(**fields: Any) -> Any:
    from zs_nemo.training.worker import MegatronWorker, WorkerSetup

    return MegatronWorker(WorkerSetup(**fields))


def _build_engine(setup: EngineSetup) -> Any:
    from zs_nemo.generation.vllm_engine import VllmEngine

    return VllmEngine(setup)
