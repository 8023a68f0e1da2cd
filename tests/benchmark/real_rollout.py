"""The quickstart's policy and simulator on real engines: our collector, the barrier, and all requests at once."""

import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from hydra import compose, initialize_config_dir

from tests.benchmark.barrier_runner import SEARCH_THREADS, BarrierRunner
from zs_nemo.cluster.engine_run import EngineRun
from zs_nemo.config.recipe import GrpoRecipeConfig
from zs_nemo.config.registry import register, to_dataclass
from zs_nemo.observability.progress import Progress
from zs_nemo.observability.run_dir import RunDir
from zs_nemo.qa.tags import STOP_STRINGS
from zs_nemo.rollout.build import episode_limits
from zs_nemo.rollout.collector import Decoding, questions_of_step
from zs_nemo.rollout.search_call import search_within_deadline
from zs_nemo.types.generation import SamplingParams
from zs_nemo.types.question import Question
from zs_nemo.types.search import SearchRequest
from zs_nemo.types.trajectory import Trajectory

CONFIGS = Path(__file__).parents[2] / "configs"
WARM_UP_STEP, STEP = 0, 1


@dataclass(kw_only=True)
class SamplingConfig(GrpoRecipeConfig):
    """The recipe's configuration without training ranks: their memory and their start are not measured here."""

    has_ranks: ClassVar[bool] = False


class RealRollout(EngineRun):
    """Plays a step's episodes three times."""

    def measure(self) -> dict[str, Any]:
        """Return seconds and counts."""
        self.ours(WARM_UP_STEP)
        ours_s, trajectories = self.ours(STEP)
        barrier_s, barrier_tokens = self.barrier(STEP)
        known_s = asyncio.run(self._known_beforehand(trajectories))
        tokens = sum(item.num_policy_tokens for item in trajectories)
        return {
            "trajectories": len(trajectories),
            "turns": sum(len(item.turns) for item in trajectories),
            "searches": sum(item.num_searches for item in trajectories),
            "policy_tokens": tokens,
            "barrier_policy_tokens": barrier_tokens,
            "ours_s": round(ours_s, 2),
            "barrier_s": round(barrier_s, 2),
            "known_beforehand_s": round(known_s, 2),
            "barrier_over_ours": round(barrier_s / ours_s, 3),
            "ours_over_known_beforehand": round(ours_s / known_s, 3),
        }

    def questions_of(self, step: int) -> list[Question]:
        """Return the questions that a training run draws for a step."""
        return questions_of_step(self._questions.train, step, self._cfg.rollout.num_prompts_per_step, self._cfg.seed)

    def ours(self, step: int) -> tuple[float, list[Trajectory]]:
        """Collect a step."""
        began = time.perf_counter()
        groups = self._collector.collect(
            self.questions_of(step),
            self._engines.training(0.0),
            Decoding(temperature=self._cfg.generation.temperature, top_p=self._cfg.generation.top_p),
            step=step,
            group_size=self._cfg.rollout.num_generations_per_prompt,
        )
        return time.perf_counter() - began, [item for group in groups for item in group.trajectories]

    def barrier(self, step: int) -> tuple[float, int]:
        """Play a step turn by turn; return (seconds, tokens of the policy)."""
        cfg = self._cfg
        runner = BarrierRunner(
            self.system.generation, self._tokenizer, episode_limits(cfg), search_threads=SEARCH_THREADS
        )
        rows = runner.rows(
            self.questions_of(step),
            run_seed=cfg.seed,
            step=step,
            group_size=cfg.rollout.num_generations_per_prompt,
        )
        began = time.perf_counter()
        asyncio.run(runner.run(rows, self._engines.training(0.0), temperature=cfg.generation.temperature))
        return time.perf_counter() - began, sum(row.policy_tokens for row in rows)

    async def _known_beforehand(self, trajectories: Sequence[Trajectory]) -> float:
        search, cfg = self._engines.training(0.0), self._cfg
        calls: list[Any] = []
        for item in trajectories:
            for number, turn in enumerate(item.turns):
                sampling = SamplingParams(
                    max_tokens=turn.end - turn.start,
                    temperature=cfg.generation.temperature,
                    top_p=cfg.generation.top_p,
                    stop=STOP_STRINGS,
                )
                prompt = item.token_ids[: turn.start]
                calls.append(self.system.generation.generate(prompt, sampling, turn.sampling_seed))
                if turn.query is None:
                    continue
                request = SearchRequest(
                    query=turn.query,
                    question=item.question.text,
                    answers=item.question.answers,
                    key=replace(item.key, turn=number),
                    num_documents=search.num_documents,
                )
                calls.append(search_within_deadline(search.callback, request, search.deadline_s(episode_limits(cfg))))
        began = time.perf_counter()
        await asyncio.gather(*calls)
        return time.perf_counter() - began


def measure_real(overrides: Sequence[str]) -> dict[str, Any]:
    """Start the engines, play a step in all ways, and end the engines."""
    register()
    with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
        composed = to_dataclass(compose("grpo", overrides=list(overrides)), GrpoRecipeConfig)
    cfg = SamplingConfig(**{field.name: getattr(composed, field.name) for field in fields(composed)})
    with tempfile.TemporaryDirectory() as folder, RunDir(Path(folder) / "rollout", cfg) as run_dir:
        run_dir.begin()
        with Progress("bench_rollout") as progress, RealRollout(cfg, run_dir, progress) as run:
            return run.measure() | {"settings": list(overrides)}
