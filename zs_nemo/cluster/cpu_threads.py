"""How many threads engines and ranks compute with on CPU, where settings leave it to the machine."""

import dataclasses
import math
from collections.abc import Sequence

from zs_nemo.config.answering import AnsweringConfig
from zs_nemo.config.recipe import PpoRecipeConfig, RecipeConfig
from zs_nemo.config.registry import Config
from zs_nemo.config.search import SimulatedSearchConfig


def usable_cores() -> int:
    """Return the physical cores that this process may use, by its affinity and its container's quota.

    The second thread of a core adds next to nothing to matrix products, which keep the core's arithmetic busy.
    """
    from joblib import cpu_count

    return int(cpu_count(only_physical_cores=True))


def shared_threads(num_processes: Sequence[int], num_cores: int) -> int:
    """Return the threads of each process where groups of ``num_processes`` take turns on ``num_cores``.

    Never more than cores: busy threads that wait for each other's core take many times as long.
    """
    return max(1, num_cores // max(1, *num_processes))


def with_settled_threads(cfg: Config, num_cores: int) -> Config:
    """Return the configuration with the 0 of ``cluster.threads_*`` replaced by a share of ``num_cores``.

    Those share the cores of a machine that compute at the same time: the ranks in a training step, the engines in a
    rollout, and both where rollouts overlap training.
    """
    cluster = cfg.cluster
    training, policy, simulator = _processes(cfg)
    overlap = cfg.has_ranks and cfg.has_engines and cfg.rollout.max_staleness > 0
    beside = training if overlap else 0
    threads = cluster.threads_per_process or shared_threads([training, beside + policy + simulator], num_cores)
    lone = cluster.threads_of_lone_engine or max(threads, shared_threads([beside + policy], num_cores))
    settled = dataclasses.replace(cluster, threads_per_process=threads, threads_of_lone_engine=lone)
    return dataclasses.replace(cfg, cluster=settled)


def _processes(cfg: RecipeConfig) -> tuple[int, int, int]:
    """Return how many processes of one machine train, generate for the policy, and for the simulator."""
    nodes = cfg.trainer.num_nodes
    ranks = nodes * cfg.trainer.devices if cfg.has_ranks else 0
    if isinstance(cfg, PpoRecipeConfig):
        ranks += cfg.critic.num_ranks
    served = isinstance(cfg, AnsweringConfig) and bool(cfg.endpoint.addresses)
    has_policy = cfg.has_engines and not served
    policy = cfg.generation.num_engines * cfg.generation.tensor_model_parallel_size if has_policy else 0
    search, simulator = cfg.search, 0
    if cfg.has_engines and isinstance(search, SimulatedSearchConfig) and search.needs_engines:
        simulator = search.num_engines * search.tensor_model_parallel_size
    return math.ceil(ranks / nodes), math.ceil(policy / nodes), math.ceil(simulator / nodes)
