"""Jobs of the tiny configuration, submitted as a user submits theirs."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.slurm.cluster import SlurmCluster, wait_for

NUM_STEPS = 4
START_S = 300.0
"""More than a job needs to be at its first step, on a busy machine too."""


class Jobs:
    """Submits the shipped scripts and looks at what becomes of them."""

    def __init__(self, cluster: SlurmCluster, model: Path, folder: Path) -> None:
        """``folder`` takes run directories and the jobs' output."""
        self.cluster, self.folder = cluster, folder
        self._settings = [
            f"policy.model={model}",
            "search=bm25",
            f"exp_manager.exp_dir={folder}",
            "exp_manager.save_every_n_steps=1",
            "trainer.accelerator=cpu",
            f"trainer.max_steps={NUM_STEPS}",
            "policy.precision=fp32",
            "policy.optim.lr=1e-4",
            "policy.global_batch_size=6",
            "rollout.num_prompts_per_step=2",
            "rollout.num_generations_per_prompt=3",
            "rollout.max_turn_tokens=24",
            "algorithm.zero_variance=keep",
            # Random weights never answer right: by F1 alone every advantage would be 0.
            "reward.function=tests.slurm.slow_reward.slow",
            "warm_start.steps=0",
            "evaluation.num_questions=2",
            "evaluation.temperatures=[0.0]",
            "evaluation.split=validation",
        ]

    def submit(self, name: str, *options: str, nodes: int = 2, **variables: str) -> str:
        """Submit launch/slurm/recipe.sbatch with a run of this name and return the job's number."""
        ranks = (f"trainer.num_nodes={nodes}", f"trainer.devices={3 - nodes}")
        return self._submit("grpo", name, options, (*ranks, *self._settings), nodes, variables)

    def submit_evaluation(self, name: str, num_questions: int) -> str:
        """Submit an evaluation over two nodes with an engine on each, which asks one question after the other."""
        settings = (
            self._settings[0],
            "search=bm25",
            f"exp_manager.exp_dir={self.folder}",
            "trainer.accelerator=cpu",
            "trainer.num_nodes=2",
            "trainer.devices=1",
            "policy.precision=fp32",
            "generation.num_engines=2",
            "rollout.max_concurrency=1",
            f"evaluate.limit={num_questions}",
        )
        return self._submit("evaluate", name, (), settings, 2, {})

    def _submit(
        self,
        recipe: str,
        name: str,
        options: Sequence[str],
        settings: Sequence[str],
        nodes: int,
        variables: Mapping[str, str],
    ) -> str:
        return self.cluster.submit(
            f"--nodes={nodes}",
            f"--output={self.folder / name}-%j.out",
            *options,
            "launch/slurm/recipe.sbatch",
            recipe,
            f"exp_manager.name={name}",
            *settings,
            ZS_NEMO_RAY_OPTIONS="--object-store-memory 200000000",
            **variables,
        )

    def output(self, number: str, name: str) -> str:
        """Return what a job has printed in all its lives."""
        path = self.folder / f"{name}-{number}.out"
        return path.read_text() if path.exists() else ""

    def steps(self, name: str) -> list[dict[str, float]]:
        """Return the steps of a run so far."""
        path = self.folder / name / "metrics.jsonl"
        if not path.exists():
            return []
        # The last line may be half written.
        lines = path.read_text().rpartition("\n")[0].splitlines()
        return [json.loads(line) for line in lines]

    def wait_for_steps(self, name: str, count: int) -> None:
        """Return when a run has made so many steps."""
        wait_for(lambda: len(self.steps(name)) >= count, START_S, f"{name} makes {count} steps")

    def answers(self, name: str) -> list[str]:
        """Return the questions that an evaluation has answers to, in their order."""
        found = (self.folder / name / "answers").glob("*/*.jsonl")
        lines = [line for path in found for line in path.read_text().rpartition("\n")[0].splitlines()]
        return [json.loads(line)["question_id"] for line in lines]

    def must_complete(self, number: str, name: str) -> dict[str, str]:
        """Wait for a job's end, hold that it was a good one, and return it."""
        began = time.monotonic()
        try:
            job = self.cluster.wait_for_end(number, 2 * START_S)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.output(number, name)[-6000:]}") from error
        told = f"after {time.monotonic() - began:.0f} s\n{self.output(number, name)[-6000:]}"
        assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), told
        return job
