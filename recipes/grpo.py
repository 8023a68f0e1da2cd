"""Train a policy to search with GRPO, against a simulated search engine or a real one.

ZeroSearch (arXiv 2505.04588) with group relative policy optimization (arXiv 2402.03300):
a short supervised warm start, then per step: roll out groups of episodes, grade the answers by F1, compare the members
of each group, and update the policy with a clipped loss and a KL term to the warm-started reference.

    python recipes/grpo.py                                     # the quickstart, on two CPU cores
    python recipes/grpo.py search=bm25 exp_manager.name=real   # the same against the real engine
    python recipes/grpo.py seed=2 exp_manager.name=seed2       # another seed

Asked again with the same run directory (exp_manager.exp_dir/exp_manager.name) it resumes.
Differences from the published code: the KL pulls towards the reference, documents and prompts are never trained on,
groups whose answers are all equally good are left out, and the warm start, which a 135M model needs to follow the tags.
"""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from zs_nemo.config.algorithm import ZeroVariance
from zs_nemo.config.command import command
from zs_nemo.config.recipe import GrpoRecipeConfig
from zs_nemo.config.registry import register

if TYPE_CHECKING:
    from zs_nemo.observability.progress import Progress
    from zs_nemo.observability.run_dir import RunDir
    from zs_nemo.types.trajectory import TrajectoryGroup

register()


def train(cfg: GrpoRecipeConfig, run_dir: "RunDir", progress: "Progress") -> Path:
    """Run or resume the experiment and return the path of its report."""
    from zs_nemo.algorithms.grpo import group_relative_advantages, without_zero_variance
    from zs_nemo.algorithms.policy_loss import PolicyLoss
    from zs_nemo.cluster.training_run import TrainingRun
    from zs_nemo.rollout.packing import pack
    from zs_nemo.rollout.resampling import resample_zero_variance

    algorithm, zero_variance = cfg.algorithm, cfg.algorithm.zero_variance
    loss = PolicyLoss.from_config(algorithm)
    with TrainingRun(cfg, run_dir, progress) as run:
        policy, timer = run.system.policy, run.timer
        run.warm_start()
        run.evaluate("before", step=0)
        for step in run.steps():
            noise = run.noise_at(step)
            with timer("refit"):
                run.refit(version=step)
            with timer("rollout"):
                groups = run.collect(step, noise=noise)
                replaced: list[TrajectoryGroup] = []
                if zero_variance is ZeroVariance.resample:
                    groups, replaced = resample_zero_variance(
                        groups, partial(run.collect, step, noise=noise), max_rounds=algorithm.max_resampling_rounds
                    )
            with timer("advantage"):
                batch = pack(groups)
                if batch is not None:
                    advantages = group_relative_advantages(batch, normalize_std=algorithm.normalize_std)
                    batch = batch.replace(advantages=advantages)
                    if zero_variance is not ZeroVariance.keep:
                        batch = without_zero_variance(
                            batch, loss.normalizer, global_batch_size=cfg.policy.global_batch_size
                        )
            updates = []
            if batch is not None:
                with timer("reference"):
                    batch = run.with_logprobs(batch)
                with timer("train"):
                    parts = batch.minibatches(cfg.policy.global_batch_size)
                    updates = [policy.train_step(part, loss) for part in parts]
            run.finish_step(step, [*groups, *replaced], batch, updates, noise=noise)
        run.evaluate("after", step=cfg.trainer.max_steps)
        return run.finish()


@command("grpo")
def main(composed: DictConfig) -> None:
    """Compose the configuration, then train; the heavy imports come after ``--help`` has been answered."""
    from zs_nemo.cluster.terminal import run_in_terminal

    sys.exit(run_in_terminal(composed, GrpoRecipeConfig, train))


if __name__ == "__main__":
    main()
