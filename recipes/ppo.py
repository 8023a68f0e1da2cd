"""Train a policy to search with PPO and a critic, against a simulated search engine or a real one.

ZeroSearch (arXiv 2505.04588) with proximal policy optimization (arXiv 1707.06347): as ``grpo.py``, but a critic
estimates the reward that is still to come before every token, and a token's advantage is what came beyond that
(generalized advantage estimation, arXiv 1506.02438). The KL to the reference is taken off each token's reward.

    python recipes/ppo.py exp_manager.name=ppo
    python recipes/ppo.py exp_manager.name=ppo algorithm.critic_warmup_steps=4 critic.optim.lr=1e-4

Asked again with the same run directory it resumes.
Differences from the published code: advantages, whitening and the critic's loss see policy tokens alone, and estimation
goes from a query's last token straight to the first one after the documents.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from zs_nemo.config.command import command
from zs_nemo.config.recipe import PpoRecipeConfig
from zs_nemo.config.registry import register

if TYPE_CHECKING:
    from zs_nemo.observability.progress import Progress
    from zs_nemo.observability.run_dir import RunDir

register()


def train(cfg: PpoRecipeConfig, run_dir: "RunDir", progress: "Progress") -> Path:
    """Run or resume the experiment and return the path of its report."""
    from zs_nemo.algorithms.gae import generalized_advantages
    from zs_nemo.algorithms.policy_loss import PolicyLoss
    from zs_nemo.algorithms.token_rewards import token_rewards
    from zs_nemo.algorithms.value_loss import ValueLoss, explained_variance
    from zs_nemo.algorithms.whitening import whiten
    from zs_nemo.cluster.training_run import TrainingRun
    from zs_nemo.rollout.packing import pack

    algorithm = cfg.algorithm
    loss, value_loss = PolicyLoss.from_config(algorithm), ValueLoss(clip_range=algorithm.value_clip_range)
    with TrainingRun(cfg, run_dir, progress) as run:
        policy, critic, timer = run.system.policy, run.critic, run.timer
        run.warm_start()
        run.evaluate("before", step=0)
        for step in run.steps():
            noise = run.noise_at(step)
            with timer("refit"):
                run.refit(version=step)
            with timer("rollout"):
                groups = run.collect(step, noise=noise)
            batch, updates, critic_updates, metrics = pack(groups), [], [], {}
            if batch is not None:
                with timer("reference"):
                    batch = run.with_logprobs(batch)
                with timer("values"):
                    batch = batch.replace(values=critic.values(batch))
                with timer("advantage"):
                    advantages, returns = generalized_advantages(
                        batch,
                        token_rewards(batch, algorithm.kl),
                        gamma=algorithm.gamma,
                        gae_lambda=algorithm.gae_lambda,
                    )
                    if algorithm.whiten_advantages:
                        advantages = whiten(advantages, batch.loss_mask)
                    batch = batch.replace(advantages=advantages, returns=returns)
                    metrics = {"critic/explained_variance": explained_variance(batch)}
                with timer("train_critic"):
                    for _ in range(cfg.critic.num_epochs):
                        parts = batch.minibatches(cfg.critic_batch_size)
                        critic_updates += [critic.train_step(part, value_loss) for part in parts]
                if step >= algorithm.critic_warmup_steps:
                    with timer("train"):
                        parts = batch.minibatches(cfg.policy.global_batch_size)
                        updates = [policy.train_step(part, loss) for part in parts]
            run.finish_step(step, groups, batch, updates, noise=noise, critic_updates=critic_updates, metrics=metrics)
        run.evaluate("after", step=cfg.trainer.max_steps)
        return run.finish()


@command("ppo")
def main(composed: DictConfig) -> None:
    """Compose the configuration, then train; the heavy imports come after ``--help`` has been answered."""
    from zs_nemo.cluster.terminal import run_in_terminal

    sys.exit(run_in_terminal(composed, PpoRecipeConfig, train))


if __name__ == "__main__":
    main()
