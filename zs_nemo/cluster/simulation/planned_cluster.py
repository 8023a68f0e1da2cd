"""A configuration, played: as it is, with more of each role, on other numbers of nodes, and against a measured run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from zs_nemo.cluster.settled_config import settled
from zs_nemo.cluster.setups import Layout, critic_settings, derive_layout
from zs_nemo.cluster.simulation.cluster_model import ClusterModel
from zs_nemo.cluster.simulation.cpu_model import CpuClusterBuilder
from zs_nemo.cluster.simulation.episodes import EpisodeWork
from zs_nemo.cluster.simulation.gpu_model import GpuClusterBuilder, assumed_workload
from zs_nemo.cluster.simulation.measured_run import MeasuredStep, as_measured, mean_workload, read_measured_run
from zs_nemo.cluster.simulation.quantities import Source, Sources
from zs_nemo.cluster.simulation.step_loop import PlayedSteps, StepLoop
from zs_nemo.cluster.simulation.workload import Workload, draw_episodes
from zs_nemo.config.algorithm import ImportanceLevel
from zs_nemo.config.recipe import PpoRecipeConfig, RecipeConfig
from zs_nemo.config.search import DocumentsPerCompletion, SimulatedSearchConfig

_CHECKED = ("rollout", "reference", "train", "episode", "search", "step")


@dataclass(frozen=True, kw_only=True)
class Played:
    """One cluster that was played."""

    name: str
    num_gpus: int
    steps: PlayedSteps
    num_episodes: int


@dataclass(frozen=True, kw_only=True)
class CheckedStep:
    """A measured step that was not calibrated on, beside its prediction; seconds by stage."""

    step: int
    measured: dict[str, float]
    predicted: dict[str, float]


class PlannedCluster:
    """Plays what a configuration describes. Raises ``ValueError`` for one that cannot be played."""

    def __init__(self, cfg: RecipeConfig) -> None:
        if not (cfg.has_ranks and cfg.has_engines):
            raise ValueError("a step is played of recipes that roll out and train; choose grpo, reinforce_pp or ppo")
        self._use_gpu = bool(cfg.cluster.gpus_per_node)
        self._cfg = cfg = settled(cfg, use_gpu=self._use_gpu)
        self.sources = Sources()
        self.layout = derive_layout(cfg, use_gpu=self._use_gpu)
        self._measured = self._read_run()
        self._machine: CpuClusterBuilder | None = None
        if not self._use_gpu:
            if not self._measured:
                raise ValueError(
                    "without GPUs (cluster.gpus_per_node=0) there is no data sheet to begin from: set "
                    "simulation.calibrate_on to the directory of a run on such a machine, or choose a cluster such as "
                    "cluster=a100_1x8"
                )
            measured = as_measured(Path(cfg.simulation.calibrate_on), cfg)
            layout = derive_layout(measured, use_gpu=False)
            self._machine = CpuClusterBuilder(measured, layout, self._calibrated_on, self.sources)
        self.workload = self._workload(cfg)

    @property
    def shares_gpus(self) -> bool:
        """Whether there are too few GPUs for every role to have its own."""
        return self._use_gpu and _gpus_of(self.layout) > self._cfg.cluster.gpus_per_node * self._cfg.trainer.num_nodes

    def as_configured(self) -> Played:
        """Play the configuration as it is."""
        return self._play("as configured", self._cfg, self.layout)

    def with_more(self) -> list[Played]:
        """Play it with one more engine, or one more copy of a trained model, for each role in turn.

        Where roles share GPUs, the ranks grow as far as there are some without: two ranks are never on one.
        """
        num_gpus = self._cfg.cluster.gpus_per_node * self._cfg.trainer.num_nodes
        return [
            self._play(name, self._cfg, layout)
            for name, layout in grown_layouts(self._cfg, self.layout)
            if not self.shares_gpus or layout.num_ranks + layout.num_critic_ranks <= num_gpus
        ]

    def on_nodes(self) -> list[Played]:
        """Play it on ``simulation.nodes``; on CPU, where a node is a machine like the measured one, too."""
        played = []
        for nodes in self._cfg.simulation.nodes:
            cfg = on_nodes(self._cfg, nodes)
            played.append(self._play(f"{nodes} nodes", cfg, derive_layout(cfg, use_gpu=self._use_gpu)))
        return played

    def overlapped(self) -> list[Played]:
        """Play it with ``rollout.max_staleness`` 0 and 1: with the next step's episodes beside the training.

        Nothing where engines sleep while the ranks train.
        """
        if self._cfg.engines_that_sleep:
            return []
        played = []
        for staleness in (0, 1):
            # Older weights are refused without the correction, which takes no time that is played.
            importance = replace(self._cfg.algorithm.importance, level=ImportanceLevel.token)
            cfg = replace(
                self._cfg,
                rollout=replace(self._cfg.rollout, max_staleness=staleness),
                algorithm=replace(self._cfg.algorithm, importance=importance),
            )
            played.append(self._play(f"max_staleness={staleness}", cfg, self.layout))
        return played

    def check(self) -> list[CheckedStep]:
        """Predict the measured steps that were not calibrated on; nothing on GPUs that were not measured."""
        if self._machine is None:
            return []
        checked = []
        for step in self._measured[len(self._calibrated_on) :]:
            predicted = self._machine.predict(step)
            measured = {**step.stage_s, "episode": step.episode_s, "search": step.search_s, "step": step.step_s}
            # A stage that none of the calibrated steps had cannot be predicted, and is missed by all of its length.
            predicted |= {name: 0.0 for name in step.stage_s if name not in predicted}
            predicted["step"] = sum(predicted[name] for name in step.stage_s)
            names = [name for name in _CHECKED if name in measured]
            checked.append(
                CheckedStep(
                    step=step.step,
                    measured={name: measured[name] for name in names},
                    predicted={name: predicted[name] for name in names},
                )
            )
        return checked

    @property
    def _calibrated_on(self) -> Sequence[MeasuredStep]:
        given = self._cfg.simulation.calibration_steps or len(self._measured) // 2
        return self._measured[: min(given, len(self._measured) - 1)]

    def _read_run(self) -> list[MeasuredStep]:
        path = self._cfg.simulation.calibrate_on
        if not path:
            return []
        return read_measured_run(Path(path), self._cfg, requests_per_search=requests_per_search(self._cfg))

    def _workload(self, cfg: RecipeConfig) -> Workload:
        if not self._measured:
            return assumed_workload(cfg, self.sources, requests_per_search=requests_per_search(cfg))
        num_episodes = cfg.rollout.num_prompts_per_step * cfg.rollout.num_generations_per_prompt
        workload = mean_workload(self._calibrated_on, num_episodes)
        told = f"{cfg.simulation.calibrate_on}, {len(self._calibrated_on)} steps"
        for name in ("turns_per_episode", "tokens_per_turn", "prompt_tokens", "document_tokens"):
            self.sources.note(name, getattr(workload, name), "", Source.measured, told)
        return workload

    def _play(self, name: str, cfg: RecipeConfig, layout: Layout) -> Played:
        num_episodes = cfg.rollout.num_prompts_per_step * cfg.rollout.num_generations_per_prompt
        workload, settings = replace(self.workload, num_episodes=num_episodes), cfg.simulation
        cluster = self._cluster(cfg, layout, workload)

        def draw(step: int) -> list[EpisodeWork]:
            return draw_episodes(workload, np.random.default_rng([settings.seed, step]))

        steps = StepLoop(cluster, draw, settings.num_steps).play()
        return Played(name=name, num_gpus=cluster.num_gpus, steps=steps, num_episodes=num_episodes)

    def _cluster(self, cfg: RecipeConfig, layout: Layout, workload: Workload) -> ClusterModel:
        if self._machine is not None:
            per_episode = [step.trained_tokens / step.workload.num_episodes for step in self._calibrated_on]
            trained = workload.num_episodes * sum(per_episode) / len(per_episode)
            return self._machine.build(cfg, layout, workload, trained)
        there = cfg.cluster.gpus_per_node * cfg.trainer.num_nodes
        # A cluster on which every role has GPUs of its own gets more of them when a role grows.
        if not self.shares_gpus:
            there = max(there, _gpus_of(layout))
        sources = self.sources if layout is self.layout else Sources()
        return GpuClusterBuilder(cfg, layout, workload, sources).build(num_gpus=there)


def requests_per_search(cfg: RecipeConfig) -> int:
    """Return how many requests one search sends to the simulator's engines; 0 if the run has none."""
    search = cfg.search
    if not isinstance(search, SimulatedSearchConfig) or not search.needs_engines:
        return 0
    return 1 if search.documents_per_completion is DocumentsPerCompletion.all else search.num_documents


def grown_layouts(cfg: RecipeConfig, layout: Layout) -> list[tuple[str, Layout]]:
    """Return the layout with one more of each role."""
    engines, simulators = layout.policy_engines, layout.simulator_engines
    grown = [("one more policy engine", replace(layout, policy_engines=(*engines, engines[0])))]
    if simulators:
        grown.append(("one more simulator", replace(layout, simulator_engines=(*simulators, simulators[0]))))
    ranks = layout.num_ranks + cfg.policy.model_parallel_size
    grown.append(("one more copy of the policy", replace(layout, num_ranks=ranks)))
    critic = critic_settings(cfg)
    if critic is not None and layout.num_critic_ranks:
        ranks = layout.num_critic_ranks + critic.model_parallel_size
        grown.append(("one more copy of the critic", replace(layout, num_critic_ranks=ranks)))
    return grown


def on_nodes(cfg: RecipeConfig, nodes: int) -> RecipeConfig:
    """Return the configuration on another number of nodes, with engines in proportion, at least one of a role."""
    factor = nodes / cfg.trainer.num_nodes
    changed = replace(
        cfg,
        trainer=replace(cfg.trainer, num_nodes=nodes),
        generation=replace(cfg.generation, num_engines=max(1, round(factor * cfg.generation.num_engines))),
    )
    if isinstance(cfg.search, SimulatedSearchConfig):
        changed = replace(
            changed, search=replace(cfg.search, num_engines=max(1, round(factor * cfg.search.num_engines)))
        )
    if cfg.simulation.grow_batch:
        prompts = max(1, round(factor * cfg.rollout.num_prompts_per_step))
        concurrency = max(1, round(factor * cfg.rollout.max_concurrency))
        rollout = replace(cfg.rollout, num_prompts_per_step=prompts, max_concurrency=concurrency)
        batch = max(1, round(factor * cfg.policy.global_batch_size))
        changed = replace(changed, rollout=rollout, policy=replace(cfg.policy, global_batch_size=batch))
        if isinstance(changed, PpoRecipeConfig) and changed.critic.global_batch_size:
            batch = max(1, round(factor * changed.critic.global_batch_size))
            changed = replace(changed, critic=replace(changed.critic, global_batch_size=batch))
    return changed


def _gpus_of(layout: Layout) -> int:
    engines = sum(setup.tensor_model_parallel_size for setup in layout.engines)
    return layout.num_ranks + layout.num_critic_ranks + engines
