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
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig

from zs_nemo.config.grpo import GrpoRecipeConfig
from zs_nemo.config.registry import register, to_grpo

if TYPE_CHECKING:
    from zs_nemo.observability.progress import Progress
    from zs_nemo.observability.run_dir import RunDir

register()


def train(cfg: GrpoRecipeConfig, run_dir: "RunDir", progress: "Progress") -> Path:
    """Run or resume the experiment and return the path of its report."""
    from zs_nemo.algorithms.advantages import group_relative_advantages
    from zs_nemo.algorithms.policy_loss import PolicyLoss
    from zs_nemo.cluster.training_run import TrainingRun
    from zs_nemo.curriculum import NoiseCurriculum
    from zs_nemo.rollout.packing import pack

    curriculum = NoiseCurriculum(
        start_noise=cfg.curriculum.start_noise,
        end_noise=cfg.curriculum.end_noise,
        base=cfg.curriculum.base,
        max_steps=cfg.trainer.max_steps,
    )
    loss = PolicyLoss.from_config(cfg.algorithm)
    with TrainingRun(cfg, run_dir, progress) as run:
        policy, timer = run.system.policy, run.timer
        run.warm_start()
        run.evaluate("before", step=0)
        run.begin_training()
        for step in range(run.start_step, cfg.trainer.max_steps):
            noise = curriculum.noise_at(step)
            with timer("refit"):
                run.refit(version=step)
            with timer("rollout"):
                groups = run.collect(step, noise=noise)
            with timer("advantage"):
                advantages = [
                    group_relative_advantages(group.rewards, normalize_std=cfg.algorithm.normalize_std)
                    for group in groups
                ]
                batch = pack(groups, advantages, drop_zero_variance=cfg.algorithm.drop_zero_variance_groups)
            updates = []
            if batch is not None:
                with timer("reference"):
                    if loss.needs_reference:
                        batch = batch.with_reference_logprobs(policy.reference_logprobs(batch))
                    if batch.num_sequences > cfg.policy.global_batch_size:
                        # Later updates of this step compare with the policy that the step began with.
                        batch = batch.with_policy_logprobs(policy.logprobs(batch))
                with timer("train"):
                    parts = batch.minibatches(cfg.policy.global_batch_size)
                    updates = [policy.train_step(part, loss) for part in parts]
            run.finish_step(step, groups, batch, updates, noise=noise)
        run.evaluate("after", step=cfg.trainer.max_steps)
        return run.finish()


@hydra.main(version_base="1.3", config_path="../configs", config_name="grpo")
def main(composed: DictConfig) -> None:
    """Compose the configuration, then train; the heavy imports come after ``--help`` has been answered."""
    from zs_nemo.cluster.terminal import run_in_terminal

    sys.exit(run_in_terminal(composed, to_grpo, train))


if __name__ == "__main__":
    main()
