"""The machine of a measured run: its stages' speeds as they were measured, its engines' by a number that is fitted.

A step of an engine on CPU takes as long for its weights as for some twenty sequences, and a token of a prompt somewhat
less than one that is sampled: both hold for SmolLM2-135M, whose 0.5 GB in float32 take 36 ms to read and whose
sequences take 1.65 ms each. How fast both kinds of engines were in the run is fitted, so that the rollouts
and the searches that were calibrated on take as long as they took.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from zs_nemo.cluster.setups import Layout
from zs_nemo.cluster.simulation.batching_engine import EngineSpeed
from zs_nemo.cluster.simulation.cluster_model import ClusterModel, EngineRole
from zs_nemo.cluster.simulation.measured_run import MeasuredStep
from zs_nemo.cluster.simulation.quantities import Source, Sources
from zs_nemo.cluster.simulation.step_loop import DrawStep, StepLoop
from zs_nemo.cluster.simulation.workload import Workload, draw_episodes
from zs_nemo.config.recipe import RecipeConfig

_SEQUENCES_PER_STEP = 22.0
_SAMPLED_PER_PROMPT_TOKEN = 0.8
_FIT_ROUNDS = 10
_OF_THE_CRITIC = ("values", "train_critic")
"""Stages that its ranks work in."""
_DRAWS = 3
"""Random workloads that a step is predicted with; the mean counts."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a run has taught."""

    sequence_s: float
    """Seconds of an engine of the policy for one token of one sequence."""
    simulator_sequence_s: float
    """The same of the simulator's; what its prefix cache saves is in it."""
    seconds_per_token: dict[str, float]
    """By stage that works on the trained tokens."""
    fixed_s: dict[str, float]
    """By stage that takes the same time whatever the step holds."""


class CpuClusterBuilder:
    """Fits a machine to measured steps, and builds it for any workload."""

    def __init__(self, cfg: RecipeConfig, layout: Layout, steps: Sequence[MeasuredStep], sources: Sources) -> None:
        """``cfg`` and ``layout`` are those of the measured run."""
        self._cfg = cfg
        self._layout = layout
        self.calibration = self._fit(steps)
        note, told = sources.note, f"{cfg.simulation.calibrate_on}, {len(steps)} steps"
        found = self.calibration
        note("policy engine: a token of a sequence", 1e3 * found.sequence_s, "ms", Source.measured, told)
        note("simulator: a token of a sequence", 1e3 * found.simulator_sequence_s, "ms", Source.measured, told)
        note("engines: weights of a step", _SEQUENCES_PER_STEP, "sequences", Source.assumed, "cpu_model.py")
        for stage, seconds in found.seconds_per_token.items():
            note(f"{stage}: trained tokens", 1 / seconds if seconds else 0.0, "tokens/s", Source.measured, told)
        for stage, seconds in found.fixed_s.items():
            note(f"{stage}: a step", seconds, "s", Source.measured, told)

    def build(self, cfg: RecipeConfig, layout: Layout, workload: Workload, trained_tokens: float) -> ClusterModel:
        """Return such machines with the engines and ranks of a layout, for steps of so many trained tokens.

        More ranks than were measured are taken to be faster in proportion.
        """
        return self._build(self.calibration, cfg, layout, workload, trained_tokens)

    def predict(self, step: MeasuredStep) -> dict[str, float]:
        """Return the seconds by stage of a step whose lengths are known, with those of its episodes and searches."""
        cluster = self.build(self._cfg, self._layout, step.workload, step.trained_tokens)
        return {**cluster.stage_s, "refit": cluster.refit_s, **self._rollout(self.calibration, step)}

    def _fit(self, steps: Sequence[MeasuredStep]) -> Calibration:
        # Not every step has every stage: a critic's warm-up trains no policy, nor does a step without a lesson.
        stages = dict.fromkeys(name for step in steps for name in step.stage_s if name != "rollout")
        having = {name: [step for step in steps if name in step.stage_s] for name in stages}
        totals = {name: sum(step.stage_s[name] for step in parts) for name, parts in having.items()}
        works_on_tokens = {"reference", "train", *_OF_THE_CRITIC}
        found = Calibration(
            sequence_s=1e-3,
            simulator_sequence_s=1e-3,
            seconds_per_token={
                name: total / max(1.0, sum(step.trained_tokens for step in having[name]))
                for name, total in totals.items()
                if name in works_on_tokens
            },
            fixed_s={name: total / len(having[name]) for name, total in totals.items() if name not in works_on_tokens},
        )
        for _ in range(_FIT_ROUNDS):
            predicted = [self._rollout(found, step) for step in steps]
            # Nearly proportional: a search takes as long as the simulator does, the rest of a rollout the policy.
            whole = sum(step.stage_s["rollout"] for step in steps) / sum(each["rollout"] for each in predicted)
            search = sum(step.search_s for step in steps) / max(1e-9, sum(each["search"] for each in predicted))
            found = replace(
                found,
                sequence_s=found.sequence_s * whole,
                simulator_sequence_s=found.simulator_sequence_s * (search or 1.0),
            )
        return found

    def _rollout(self, machine: Calibration, step: MeasuredStep) -> dict[str, float]:
        cluster = self._build(machine, self._cfg, self._layout, step.workload, 0.0)
        played = [StepLoop(cluster, _drawn(step.workload, seed), 1).play() for seed in range(_DRAWS)]
        return {
            "rollout": sum(each.stage_s["rollout"] for each in played) / _DRAWS,
            "episode": sum(each.episode_s for each in played) / _DRAWS,
            "search": sum(each.search_s for each in played) / _DRAWS,
        }

    def _build(
        self, machine: Calibration, cfg: RecipeConfig, layout: Layout, workload: Workload, trained_tokens: float
    ) -> ClusterModel:
        staleness, concurrency = cfg.rollout.max_staleness, cfg.rollout.max_concurrency
        stage_s = {name: seconds for name, seconds in machine.fixed_s.items() if name != "refit"}
        stage_s |= {
            name: seconds * trained_tokens * _ranks_of(name, self._layout) / _ranks_of(name, layout)
            for name, seconds in machine.seconds_per_token.items()
        }
        policy, simulator = layout.policy_engines, layout.simulator_engines
        simulator_s = machine.simulator_sequence_s
        return ClusterModel(
            generation=self._engines(machine.sequence_s, len(policy), policy[0].max_num_seqs),
            simulator=self._engines(simulator_s, len(simulator), simulator[0].max_num_seqs) if simulator else None,
            max_concurrency=min(concurrency, staleness * workload.num_episodes) if staleness else concurrency,
            max_staleness=staleness,
            refit_s=machine.fixed_s.get("refit", 0.0),
            stage_s=stage_s,
            num_ranks=layout.num_ranks,
            num_critic_ranks=layout.num_critic_ranks,
            is_apart=cfg.simulation.roles_apart,
            num_gpus=0,
        )

    @staticmethod
    def _engines(sequence_s: float, count: int, room: int) -> EngineRole:
        speed = EngineSpeed(
            step_s=lambda batch: sequence_s * (_SEQUENCES_PER_STEP + batch),
            prompt_token_s=_SAMPLED_PER_PROMPT_TOKEN * sequence_s,
            room=room,
        )
        return EngineRole(count=count, speed=speed, gpus_per_engine=0)


def _ranks_of(stage: str, layout: Layout) -> int:
    """Return how many ranks work in a stage."""
    return (stage in _OF_THE_CRITIC and layout.num_critic_ranks) or layout.num_ranks


def _drawn(workload: Workload, seed: int) -> DrawStep:
    """Return how the episodes of a lone step are drawn."""
    return lambda step: draw_episodes(workload, np.random.default_rng(seed))
