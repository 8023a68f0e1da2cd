"""Builds the rollout side of a run from its settings."""

from zs_nemo.config.recipe import RecipeConfig
from zs_nemo.rollout.callbacks import resolve_callback
from zs_nemo.rollout.collector import RolloutCollector, StepBudgets
from zs_nemo.rollout.episode import EpisodeLimits, EpisodeRunner
from zs_nemo.rollout.loop_thread import LoopThread
from zs_nemo.rollout.prompt_form import PromptForm
from zs_nemo.rollout.rewards import build_reward
from zs_nemo.types.generation import GenerationEngine, Tokenizer


def episode_limits(cfg: RecipeConfig) -> EpisodeLimits:
    """Return the limits that ``rollout`` sets."""
    return EpisodeLimits(
        max_turns=cfg.rollout.max_turns,
        max_turn_tokens=cfg.rollout.max_turn_tokens,
        max_document_tokens=cfg.rollout.max_document_tokens,
        max_sequence_tokens=cfg.rollout.max_sequence_tokens,
        search_deadline_s=cfg.rollout.search_deadline_s,
        trajectory_deadline_s=cfg.rollout.trajectory_deadline_s,
    )


def check_own_code(cfg: RecipeConfig) -> None:
    """Raise ``ValueError`` unless a reward and a callback of the user's own can be imported."""
    build_reward(cfg.reward.weights())
    if cfg.rollout.callback:
        resolve_callback(cfg.rollout.callback)


def build_collector(cfg: RecipeConfig, engine: GenerationEngine, tokenizer: Tokenizer) -> RolloutCollector:
    """Return the collector of a run."""
    return RolloutCollector(
        EpisodeRunner(engine, tokenizer, episode_limits(cfg)),
        tokenizer,
        build_reward(cfg.reward.weights()),
        run_seed=cfg.seed,
        form=PromptForm(api=cfg.api),
        max_concurrency=cfg.rollout.max_concurrency,
        budgets=StepBudgets(
            failed=cfg.rollout.search_max_failure_share,
            empty=cfg.rollout.search_max_empty_share,
            late=cfg.rollout.max_deadline_share,
        ),
        loop=LoopThread() if cfg.rollout.max_staleness else None,
    )
