"""One flat dictionary of numbers per step, from the episodes and from the updates. Pure functions.

Names: ``reward/``, ``rollout/`` and ``search/`` speak about the episodes of the step, ``tokens/`` about what is trained
on, ``train/`` about the updates, ``critic/`` about the critic and its updates, ``time/`` is seconds by stage.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from zs_nemo.types.batch import TrainBatch
from zs_nemo.types.search import SearchResult
from zs_nemo.types.trajectory import Role, Status, Trajectory, TrajectoryGroup

Metrics = dict[str, float]


def step_metrics(
    groups: Sequence[TrajectoryGroup],
    updates: Sequence[Mapping[str, float]],
    *,
    batch: TrainBatch | None = None,
    noise: float | None = None,
    stage_s: Mapping[str, float] | None = None,
) -> Metrics:
    """Return all metrics of one reinforcement-learning step.

    ``batch`` is what the updates trained on; without it the trajectories themselves are checked. ``noise`` is the
    curriculum's probability, ``stage_s`` the seconds by stage of this step. A step that has lost all its trajectories
    has no reward, no lengths and no endings.
    """
    lost = Counter(item.status for group in groups for item in group.lost)
    groups = [group for group in groups if group.trajectories]
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    metrics: Metrics = {"rollout/episodes": 0.0}
    if trajectories:
        metrics = reward_metrics(groups) | rollout_metrics(trajectories)
    metrics |= search_metrics(trajectories) | {
        "tokens/token_in_token_out_share": token_in_token_out_share(trajectories, batch),
        "tokens/trained": float(
            batch.num_loss_tokens if batch is not None else sum(item.num_policy_tokens for item in trajectories)
        ),
    }
    metrics |= {f"rollout/lost_{status.name}": float(count) for status, count in sorted(lost.items(), key=str)}
    metrics |= update_metrics(updates)
    if noise is not None:
        metrics["curriculum/noise"] = noise
    if stage_s:
        metrics |= {f"time/{stage}": seconds for stage, seconds in stage_s.items()}
        if stage_s.get("rollout"):
            generated = sum(item.num_policy_tokens for item in trajectories)
            metrics["rollout/policy_tokens_per_s"] = generated / stage_s["rollout"]
    return metrics


def reward_metrics(groups: Sequence[TrajectoryGroup]) -> Metrics:
    """Return what the rewards look like. ``zero_variance_share`` is the share of groups that teach nothing."""
    rewards = np.array([reward for group in groups for reward in group.rewards], dtype=np.float64)
    return {
        "reward/mean": float(rewards.mean()),
        "reward/std": float(rewards.std()),
        "reward/min": float(rewards.min()),
        "reward/max": float(rewards.max()),
        "reward/zero_variance_share": float(np.mean([not group.has_variance for group in groups])),
    }


def rollout_metrics(trajectories: Sequence[Trajectory]) -> Metrics:
    """Return lengths, searches and endings of the episodes, as means over episodes unless the name says otherwise."""
    tokens = {role: [item.roles.count(role) for item in trajectories] for role in Role}
    endings = Counter(item.status for item in trajectories)
    return {
        "rollout/episodes": float(len(trajectories)),
        "rollout/turns_per_episode": _mean(len(item.turns) for item in trajectories),
        "rollout/searches_per_episode": _mean(item.num_searches for item in trajectories),
        "rollout/response_tokens": _mean(tokens[Role.policy]),
        "rollout/document_tokens": _mean(tokens[Role.document]),
        "rollout/prompt_tokens": _mean(tokens[Role.prompt]),
        "rollout/sequence_tokens_max": float(max(len(item.token_ids) for item in trajectories)),
        "rollout/episode_s": _mean(item.elapsed_s for item in trajectories),
        "rollout/episode_s_max": max(item.elapsed_s for item in trajectories),
    } | {f"rollout/status_{status.name}": endings[status] / len(trajectories) for status in Status}


def staleness_metrics(groups: Sequence[TrajectoryGroup], *, weight_version: int) -> Metrics:
    """Return how much older than ``weight_version``, the trained one, the weights are that sampled the episodes.

    The mean is over policy tokens. ``carried_over_share`` is the share of episodes that went on under new weights.
    """
    episodes = [item for group in groups for item in group.trajectories if item.turns]
    turns = [turn for item in episodes for turn in item.turns]
    ages = np.array([weight_version - turn.weight_version for turn in turns], dtype=np.float64)
    tokens = np.array([turn.end - turn.start for turn in turns], dtype=np.float64)
    spans = [len({turn.weight_version for turn in item.turns}) for item in episodes]
    return {
        "rollout/staleness_mean": float((ages * tokens).sum() / tokens.sum()) if tokens.sum() else 0.0,
        "rollout/staleness_max": float(ages.max(initial=0.0)),
        "rollout/versions_per_trajectory": _mean(spans),
        "rollout/versions_per_trajectory_max": float(max(spans, default=0)),
        "rollout/carried_over_share": _mean(span > 1 for span in spans),
    }


def search_metrics(trajectories: Sequence[Trajectory]) -> Metrics:
    """Return what came back from searches.

    ``unread`` counts results after which the policy got no turn to read them. Shares and means over no search are 0.
    """
    turns = [turn for item in trajectories for turn in item.turns]
    results = [turn.result for turn in turns if turn.result is not None]
    unread = sum(bool(item.turns) and item.turns[-1].result is not None for item in trajectories)
    defects: Counter[str] = Counter()
    for result in results:
        defects.update(result.defects)
    return {
        "search/calls": float(len(results)),
        "search/failures": float(sum(item.search_failures for item in trajectories)),
        "search/unread": float(unread),
        "search/noisy_share": _mean(_noisy_share(result) for result in results),
        "search/latency_s": _mean(result.latency_s for result in results),
        "search/latency_s_max": max((result.latency_s for result in results), default=0.0),
        "search/simulator_tokens": float(sum(result.prompt_tokens + result.completion_tokens for result in results)),
    } | {f"search/defect_{kind}": float(count) for kind, count in sorted(defects.items())}


def _noisy_share(result: SearchResult) -> float:
    """Return the share of noisy documents: all or none, unless each has had a coin of its own."""
    flags = [document.noisy for document in result.documents]
    return float(np.mean(flags)) if any(flags) else float(result.noisy)


def update_metrics(updates: Sequence[Mapping[str, float]], *, prefix: str = "train") -> Metrics:
    """Join the metrics of a step's optimizer updates under ``prefix``.

    Counts add up, ``*_max`` and the gradient norm keep the largest, the learning rate keeps the last. The loss is
    weighted by what it was divided by, and everything else, which is a mean over tokens, by the tokens of its update:
    as if the step had been one update.
    """
    joined: Metrics = {}
    for name in {name: None for update in updates for name in update if name != "loss_normalizer"}:
        having = [update for update in updates if name in update]
        values = np.array([update[name] for update in having], dtype=np.float64)
        weight = "loss_normalizer" if name == "loss" else "num_loss_tokens"
        weights = np.array([update.get(weight, 1.0) for update in having], dtype=np.float64)
        if name.startswith("num_"):
            value = values.sum()
        elif name.endswith("_max") or name == "grad_norm":
            value = values.max()
        elif name == "learning_rate" or not weights.sum():
            value = values[-1]
        else:
            value = (values * weights).sum() / weights.sum()
        joined[f"{prefix}/{name}"] = float(value)
    if updates:
        joined[f"{prefix}/num_updates"] = float(len(updates))
    return joined


def token_in_token_out_share(trajectories: Sequence[Trajectory], batch: TrainBatch | None = None) -> float:
    """Return the share of trained tokens that are, in their place, ids that the engine returned. Must be 1.

    Held against each turn's ``sampled_ids``, the engine's own record. With ``batch`` every token under its loss mask is
    checked, and a sequence that equals no trajectory counts as not sampled; without it every policy token. No trained
    token at all gives 1.
    """
    if batch is None:
        checks = [(item.token_ids, [role is Role.policy for role in item.roles]) for item in trajectories]
    else:
        lengths = batch.lengths.tolist()
        ids = batch.token_ids.split(lengths)
        masks = batch.loss_mask.split(lengths)
        checks = [(part.tolist(), mask.tolist()) for part, mask in zip(ids, masks, strict=True)]
    by_ids: dict[tuple[int, ...], list[list[int | None]]] = {}
    for item in trajectories:
        by_ids.setdefault(tuple(item.token_ids), []).append(_sampled(item))
    trained = sampled = 0
    for token_ids, mask in checks:
        trained += sum(mask)
        candidates = by_ids.get(tuple(token_ids), [])
        # Members of a group can hold the same ids with other turns; the sequence is one of them.
        sampled += max((_agreeing(token_ids, mask, record) for record in candidates), default=0)
    return sampled / trained if trained else 1.0


def _sampled(trajectory: Trajectory) -> list[int | None]:
    """Lay the engine's record of every turn over the sequence; None where it sampled nothing."""
    record: list[int | None] = [None] * len(trajectory.token_ids)
    for turn in trajectory.turns:
        if turn.end - turn.start != len(turn.sampled_ids):
            continue
        for place, token in zip(range(turn.start, turn.end), turn.sampled_ids, strict=True):
            record[place] = token
    return record


def _agreeing(token_ids: list[int], mask: list[bool], record: list[int | None]) -> int:
    return sum(trained and token == engine for token, trained, engine in zip(token_ids, mask, record, strict=True))


def _mean(values: Iterable[float]) -> float:
    numbers = np.fromiter(values, dtype=np.float64)
    return float(numbers.mean()) if numbers.size else 0.0
