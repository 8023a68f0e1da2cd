"""Questions of a person, answered one after the other by a policy that is started once."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from zs_nemo.cluster.answering import Answering, answering
from zs_nemo.cluster.settled_config import settled
from zs_nemo.config.ask import AskRecipeConfig
from zs_nemo.config.evaluate import Method
from zs_nemo.config.search import NoSearchConfig
from zs_nemo.evaluation.answerer import Answerer, question_key
from zs_nemo.qa.facts import load_facts_world
from zs_nemo.rollout.build import episode_limits
from zs_nemo.rollout.collector import Decoding, check_prompts_fit
from zs_nemo.rollout.ledger import SearchLedger
from zs_nemo.rollout.live_episode import EpisodePainter, WatchedCallback, WatchedEngine
from zs_nemo.types.question import Question
from zs_nemo.types.trajectory import Trajectory

_UNKNOWN = ("(unknown)",)
"""A question has gold answers; to a person's nobody knows them, and no engine is told these."""


def ask(cfg: AskRecipeConfig, questions: Iterable[str], console: Console) -> list[str | None]:
    """Answer the questions on the console, and return the answers, None where there was none.

    ``questions`` may wait for a person; it is asked for the next one when the one before is answered.
    """
    cfg, logs = settled(cfg), Path(cfg.log_dir)
    console.print(f"starting the policy; logs: {logs / 'logs'}", style="bright_black", highlight=False)
    with answering(cfg, load_facts_world(cfg.data), SearchLedger(), logs) as parts, asyncio.Runner() as loop:
        try:
            return [loop.run(_answer(cfg, parts, text, console)) for text in questions]
        finally:
            loop.run(parts.aclose())


async def _answer(cfg: AskRecipeConfig, parts: Answering, text: str, console: Console) -> str | None:
    painter = EpisodePainter(console)
    policy, search = parts.policy, parts.search
    if search is not None:
        search = replace(search, callback=WatchedCallback(search.callback, painter))
    method = Method.direct if isinstance(cfg.search, NoSearchConfig) else Method.agent
    limits = episode_limits(cfg)
    answerer = Answerer(method, WatchedEngine(policy.engine, painter), policy.tokenizer, limits, policy.form, search)
    question = Question(id="asked/0000", text=text, answers=_UNKNOWN, kind="asked", split="test")
    check_prompts_fit([question], policy.tokenizer, limits, form=policy.form)
    key = question_key(question, run_seed=cfg.seed, step=0)
    decoding = Decoding(temperature=cfg.temperature, top_p=cfg.top_p)
    trajectory = await answerer.answer(question, key, decoding)
    painter.end(_outcome(trajectory))
    return trajectory.answer


def _outcome(trajectory: Trajectory) -> str:
    took = (
        f"{trajectory.num_searches} searches, {trajectory.num_policy_tokens} tokens written, "
        f"{trajectory.elapsed_s:.1f} s"
    )
    if trajectory.answer is not None:
        return f"answer: {trajectory.answer}  ({took})"
    return f"no answer: {trajectory.status.value}  ({took})"
