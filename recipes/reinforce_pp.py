"""Train a policy to search with REINFORCE++, against a simulated search engine or a real one.

ZeroSearch (arXiv 2505.04588) with REINFORCE++ (arXiv 2501.03262): as ``grpo.py``, but a token's advantage is the
reward that follows it, whitened over all policy tokens of the step. The KL stands in the loss, as ZeroSearch publishes
it; algorithm.kl.where=reward algorithm.kl.estimator=k1 takes it off each token's reward, as the paper does. No group is
needed: rollout.num_generations_per_prompt=1 works. With algorithm.group_baseline=true the group's mean is taken off
first.

    python recipes/reinforce_pp.py exp_manager.name=reinforce_pp
    python recipes/reinforce_pp.py exp_manager.name=baseline algorithm.group_baseline=true algorithm.kl.estimator=k2

Asked again with the same run directory it resumes.
Differences from the published code: that has plain REINFORCE, the raw reward on every token, which is
algorithm.whiten_advantages=false here; and the KL pulls towards the reference.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from zs_nemo.config.command import command
from zs_nemo.config.recipe import ReinforcePpRecipeConfig
from zs_nemo.config.registry import register

if TYPE_CHECKING:
    from zs_nemo.observability.progress import Progress
    from zs_nemo.observability.run_dir import RunDir

register()


def train(cfg: ReinforcePpRecipeConfig, run_dir: "RunDir", progress: "Progress") -> Path:
    """Run or resume the experiment and return the path of its report."""
    from zs_nemo.algorithms.policy_loss import PolicyLoss
    from zs_nemo.algorithms.reinforce_pp import reinforce_pp_advantages
    from zs_nemo.algorithms.token_rewards import token_rewards
    from zs_nemo.cluster.training_run import TrainingRun
    from zs_nemo.rollout.packing import pack

    algorithm = cfg.algorithm
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
            batch, updates = pack(groups), []
            if batch is not None:
                with timer("reference"):
                    batch = run.with_logprobs(batch)
                with timer("advantage"):
                    advantages = reinforce_pp_advantages(
                        batch,
                        token_rewards(batch, algorithm.kl),
                        gamma=algorithm.gamma,
                        group_baseline=algorithm.group_baseline,
                        whitened=algorithm.whiten_advantages,
                    )
                    batch = batch.replace(advantages=advantages)
                with timer("train"):
                    parts = batch.minibatches(cfg.policy.global_batch_size)
                    updates = [policy.train_step(part, loss) for part in parts]
            run.finish_step(step, groups, batch, updates, noise=noise)
        run.evaluate("after", step=cfg.trainer.max_steps)
        return run.finish()


@command("reinforce_pp")
def main(composed: DictConfig) -> None:
    """Compose the configuration, then train; the heavy imports come after ``--help`` has been answered."""
    from zs_nemo.cluster.terminal import run_in_terminal

    sys.exit(run_in_terminal(composed, ReinforcePpRecipeConfig, train))


if __name__ == "__main__":
    main()
