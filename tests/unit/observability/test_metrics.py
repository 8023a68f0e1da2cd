from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.unit.observability.runs import group, question, result, searching, trajectory
from zs_nemo.observability.metrics import staleness_metrics, step_metrics, token_in_token_out_share, update_metrics
from zs_nemo.types.batch import TrainBatch
from zs_nemo.types.trajectory import Role, Status, TrajectoryGroup

TEXT = [("prompt", Role.prompt), ("think", Role.policy), ("document", Role.document), ("end", Role.policy)]


def batch_of(token_ids: list[int], mask: list[bool]) -> TrainBatch:
    zeros = torch.zeros(len(token_ids))
    return TrainBatch(
        token_ids=torch.tensor(token_ids),
        lengths=torch.tensor([len(token_ids)]),
        loss_mask=torch.tensor(mask),
        advantages=zeros,
        generation_logprobs=zeros,
    )


def test_rewards_lengths_and_endings_are_counted_over_episodes() -> None:
    groups = [
        group(
            trajectory(TEXT, [result(noisy=True, defects={"cut": 2})], reward=1.0),
            trajectory(TEXT[:2], status=Status.turn_cut),
        ),
        group(searching(reward=0.5), searching(reward=0.5)),
    ]
    metrics = step_metrics(groups, [], noise=0.25, stage_s={"rollout": 2.0})
    assert metrics["reward/mean"] == 0.5
    assert metrics["reward/std"] == pytest.approx(np.std([1.0, 0.0, 0.5, 0.5]))
    assert metrics["reward/zero_variance_share"] == 0.5
    assert metrics["rollout/searches_per_episode"] == 0.75
    assert metrics["rollout/response_tokens"] == (8 + 5 + 14 + 14) / 4
    assert metrics["rollout/document_tokens"] == (8 + 0 + 3 + 3) / 4
    assert metrics["rollout/status_turn_cut"] == 0.25
    assert metrics["rollout/status_answered"] == 0.75
    assert metrics["search/noisy_share"] == pytest.approx(1 / 3)
    assert metrics["search/defect_cut"] == 2
    assert metrics["search/simulator_tokens"] == 3 * 14
    assert metrics["rollout/policy_tokens_per_s"] == 41 / 2
    assert metrics["curriculum/noise"] == 0.25
    assert metrics["search/unread"] == 0
    assert all(isinstance(value, float) for value in metrics.values())


def test_a_search_whose_result_no_turn_reads_is_counted() -> None:
    unread = trajectory(TEXT[:3], [result()], status=Status.turn_limit)
    assert step_metrics([group(unread, searching())], [])["search/unread"] == 1


def test_a_group_that_lost_all_its_members_is_passed_over() -> None:
    empty = TrajectoryGroup(question=searching().question, trajectories=[])
    assert step_metrics([empty, group(searching(reward=1.0))], [])["reward/mean"] == 1.0


def test_a_step_that_lost_all_its_trajectories_within_the_budgets_has_metrics_without_a_reward() -> None:
    lost = replace(searching(), status=Status.deadline)
    metrics = step_metrics([TrajectoryGroup(question=lost.question, trajectories=[], lost=[lost])], [], noise=0.5)
    assert (metrics["rollout/episodes"], metrics["rollout/lost_deadline"], metrics["search/calls"]) == (0, 1, 0)
    assert metrics["curriculum/noise"] == 0.5 and not any(name.startswith("reward/") for name in metrics)


def test_staleness_is_by_token_and_spans_are_by_episode() -> None:
    carried, fresh = searching(key=(3, 0, 0)), searching(key=(3, 0, 1))
    # "<search>" has eight tokens and came from weights two versions old, "answer" has six.
    carried.turns[0] = replace(carried.turns[0], weight_version=1)
    assert [turn.end - turn.start for turn in carried.turns] == [8, 6]
    assert staleness_metrics([group(carried, fresh)], weight_version=3) == {
        "rollout/staleness_mean": pytest.approx(2 * 8 / 28),
        "rollout/staleness_max": 2.0,
        "rollout/versions_per_trajectory": 1.5,
        "rollout/versions_per_trajectory_max": 2.0,
        "rollout/carried_over_share": 0.5,
    }


def test_a_step_without_an_episode_has_a_staleness_of_zero() -> None:
    assert set(
        staleness_metrics([TrajectoryGroup(question=question(), trajectories=[])], weight_version=3).values()
    ) == {0.0}


def test_a_step_without_searches_has_shares_of_zero() -> None:
    metrics = step_metrics([group(trajectory(TEXT[:2]))], [])
    assert metrics["search/noisy_share"] == 0.0
    assert metrics["search/latency_s_max"] == 0.0


def test_updates_are_weighted_by_their_tokens() -> None:
    updates = [
        {"kl": 0.1, "ratio_max": 1.5, "num_loss_tokens": 300.0, "grad_norm": 1.0, "learning_rate": 1e-5},
        {"kl": 0.5, "ratio_max": 1.2, "num_loss_tokens": 100.0, "grad_norm": 3.0, "learning_rate": 2e-5},
    ]
    joined = update_metrics(updates)
    assert joined["train/kl"] == pytest.approx(0.2)
    assert joined["train/ratio_max"] == 1.5
    assert joined["train/num_loss_tokens"] == 400
    assert joined["train/grad_norm"] == 3.0
    assert joined["train/learning_rate"] == 2e-5
    assert joined["train/num_updates"] == 2


def test_tokens_as_the_engine_sampled_them_give_a_share_of_one() -> None:
    episode = trajectory(TEXT, [result()])
    mask = [role is Role.policy for role in episode.roles]
    assert token_in_token_out_share([episode]) == 1.0
    assert token_in_token_out_share([episode], batch_of(episode.token_ids, mask)) == 1.0


def test_one_token_that_the_engine_did_not_sample_lowers_the_share() -> None:
    episode = trajectory(TEXT, [result()])
    episode.token_ids[7] += 1
    assert token_in_token_out_share([episode]) == pytest.approx(7 / 8)


def test_a_trained_document_token_lowers_the_share() -> None:
    episode = trajectory(TEXT, [result()])
    mask = [role in (Role.policy, Role.document) for role in episode.roles]
    assert token_in_token_out_share([episode], batch_of(episode.token_ids, mask)) == pytest.approx(8 / 16)


def test_a_sequence_that_no_episode_holds_counts_as_not_sampled() -> None:
    episode = trajectory(TEXT, [result()])
    mask = [role is Role.policy for role in episode.roles]
    assert token_in_token_out_share([episode], batch_of(episode.token_ids[:-1], mask[:-1])) == 0.0


def test_a_turn_whose_span_does_not_fit_its_record_counts_as_not_sampled() -> None:
    episode = trajectory(TEXT[:2])
    episode.token_ids.append(5)
    episode.roles.append(Role.policy)
    assert token_in_token_out_share([episode]) == pytest.approx(5 / 6)
