"""A run that was measured: the lengths and the seconds of its steps."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from zs_nemo.cluster.simulation.workload import Workload, max_completion_tokens
from zs_nemo.config.recipe import RecipeConfig
from zs_nemo.observability.files import read_json, read_json_lines
from zs_nemo.observability.phase import Phase

PREFIX = "time/"
_NOT_A_STEP = ("checkpoint", "evaluation")
_SIMULATOR = "simulator"
_OF_THE_MACHINE = (
    "trainer.num_nodes",
    "trainer.devices",
    "policy.tensor_model_parallel_size",
    "policy.pipeline_model_parallel_size",
    "policy.context_parallel_size",
    "critic.num_ranks",
    "critic.tensor_model_parallel_size",
    "critic.pipeline_model_parallel_size",
    "critic.context_parallel_size",
    "generation.num_engines",
    "generation.tensor_model_parallel_size",
    "generation.max_num_seqs",
    "search.num_engines",
    "search.tensor_model_parallel_size",
    "search.max_num_seqs",
    "rollout.max_concurrency",
    "rollout.max_staleness",
)


@dataclass(frozen=True, kw_only=True)
class MeasuredStep:
    """One step."""

    step: int
    workload: Workload
    stage_s: Mapping[str, float]
    trained_tokens: float
    """Of whole sequences, of the groups that were trained on."""
    episode_s: float
    search_s: float

    @property
    def step_s(self) -> float:
        """All stages together."""
        return sum(self.stage_s.values())


def read_measured_run(path: Path, cfg: RecipeConfig, *, requests_per_search: int) -> list[MeasuredStep]:
    """Return the steps of a run directory; ``cfg`` says what its metrics do not, such as the limit of a turn.

    Raises ``ValueError`` when there are fewer than two, or when the run's speeds say nothing of ``cfg``.
    """
    rows = [row for row in read_json_lines(path / "metrics.jsonl") if row.get("phase") == Phase.rl.value]
    # A step that has lost all its trajectories tells nothing of their work.
    rows = [row for row in rows if row["rollout/episodes"]]
    if len(rows) < 2:
        raise ValueError(
            f"simulation.calibrate_on={str(path)!r} has {len(rows)} steps in its metrics.jsonl, and two are needed: "
            "one to calibrate on, one to hold the prediction against; give the directory of a run that has got further"
        )
    _check_speeds_can_be_used(path, cfg)
    phases = read_json(path / "search.json", {})
    counts = phases.get(Phase.rl.value, {}).get(_SIMULATOR, {})
    return [_measured(row, cfg, counts, requests_per_search) for row in rows]


def as_measured(path: Path, cfg: RecipeConfig) -> RecipeConfig:
    """Return ``cfg`` with the ranks, the engines and the concurrency that the run of a directory had.

    Speeds are fitted with these, and then played with those of ``cfg``.
    """
    measured = copy.deepcopy(cfg)
    begun = _settings_of(path)
    for name in _OF_THE_MACHINE:
        value = OmegaConf.select(begun, name)
        group, _, field = name.partition(".")
        if value is not None and hasattr(getattr(measured, group, None), field):
            setattr(getattr(measured, group), field, value)
    return measured


def _settings_of(path: Path) -> DictConfig:
    file = path / "config.yaml"
    begun = OmegaConf.load(file) if file.exists() else OmegaConf.create({})
    assert isinstance(begun, DictConfig)
    return begun


def _check_speeds_can_be_used(path: Path, cfg: RecipeConfig) -> None:
    """Lengths can be taken from any run; on CPU, where speeds are measured too, not from each."""
    if cfg.cluster.gpus_per_node:
        return
    begun = _settings_of(path)
    if OmegaConf.select(begun, "rollout.max_staleness"):
        raise ValueError(
            f"simulation.calibrate_on={str(path)!r} was run with rollout.max_staleness, so that the seconds of its "
            "rollouts are what was left to wait for; give a run that collected and trained in turn"
        )
    measured = OmegaConf.select(begun, "policy.model")
    if measured is not None and measured != cfg.policy.model:
        raise ValueError(
            f"simulation.calibrate_on={str(path)!r} was run with policy.model={measured!r}, and its speeds say nothing "
            f"of policy.model={cfg.policy.model!r}; give a run of that policy"
        )


def _measured(
    row: Mapping[str, Any], cfg: RecipeConfig, counts: Mapping[str, float], requests_per_search: int
) -> MeasuredStep:
    episodes, turns = row["rollout/episodes"], row["rollout/turns_per_episode"]
    calls, searches = row["search/calls"], row["rollout/searches_per_episode"]
    # What was asked in vain has kept the simulator's engines busy as well.
    asked = (calls + row["search/failures"]) / calls if calls else 1.0
    tokens = row["search/simulator_tokens"] / (calls * requests_per_search) if calls and requests_per_search else 0.0
    written = counts.get("completion_tokens", 0) / max(
        1, counts.get("completion_tokens", 0) + counts.get("prompt_tokens", 0)
    )
    workload = Workload(
        num_episodes=round(episodes),
        group_size=cfg.rollout.num_generations_per_prompt,
        max_turns=cfg.rollout.max_turns,
        turns_per_episode=turns,
        tokens_per_turn=row["rollout/response_tokens"] / turns,
        max_turn_tokens=cfg.rollout.max_turn_tokens,
        spread_of_tokens=cfg.simulation.spread_of_tokens,
        prompt_tokens=row["rollout/prompt_tokens"],
        document_tokens=row["rollout/document_tokens"] / searches if searches else 0.0,
        search_latency_s=0.0 if requests_per_search else row["search/latency_s"],
        simulator_requests=requests_per_search,
        simulator_prompt_tokens=asked * tokens * (1 - written),
        simulator_completion_tokens=asked * tokens * written,
        simulator_max_tokens=asked * max_completion_tokens(cfg.search),
    )
    sequence = row["rollout/prompt_tokens"] + row["rollout/response_tokens"] + row["rollout/document_tokens"]
    kept = row["tokens/trained"] / (row["rollout/response_tokens"] * episodes)
    stage_s = {name.removeprefix(PREFIX): value for name, value in row.items() if name.startswith(PREFIX)}
    return MeasuredStep(
        step=int(row["step"]),
        workload=workload,
        stage_s={name: value for name, value in stage_s.items() if name not in _NOT_A_STEP},
        trained_tokens=kept * sequence * episodes,
        episode_s=row["rollout/episode_s"],
        search_s=row["search/latency_s"],
    )


def mean_workload(steps: Sequence[MeasuredStep], num_episodes: int) -> Workload:
    """Return the lengths of several steps in the mean, for as many episodes as the configuration has."""
    names = (
        "turns_per_episode",
        "tokens_per_turn",
        "prompt_tokens",
        "document_tokens",
        "search_latency_s",
        "simulator_prompt_tokens",
        "simulator_completion_tokens",
    )
    means = {name: sum(getattr(step.workload, name) for step in steps) / len(steps) for name in names}
    return replace(steps[0].workload, num_episodes=num_episodes, **means)
