"""Trajectories as a training batch."""

import pytest
import torch

from tests.fakes import CharTokenizer
from zs_nemo.algorithms.policy_loss import PolicyLoss
from zs_nemo.config.algorithm import KlEstimator, KlPlace, LossAggregation
from zs_nemo.rollout.packing import pack, pack_scripted
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.question import Question
from zs_nemo.types.trajectory import Role, Trajectory, TrajectoryGroup

QUESTION = Question(id="q", text="?", answers=("a",), kind="k", split="train")
P, S, D = Role.prompt, Role.policy, Role.document


def trajectory(ids: list[int], roles: list[Role], member: int = 0) -> Trajectory:
    """Return a trajectory whose logprobs are -id/10 on policy tokens."""
    return Trajectory(
        key=SampleKey(run_seed=0, step=0, prompt=0, member=member),
        question=QUESTION,
        token_ids=ids,
        roles=roles,
        generation_logprobs=[-token / 10 if role is S else 0.0 for token, role in zip(ids, roles, strict=True)],
    )


def test_advantages_and_the_mask_stand_on_policy_tokens_alone():
    group = TrajectoryGroup(
        question=QUESTION, trajectories=[trajectory([5, 6, 7, 2, 8], [P, S, D, D, S]), trajectory([5, 2], [P, S])]
    )
    batch = pack([group], [torch.tensor([0.5, -0.5])], drop_zero_variance=True)
    assert batch.token_ids.tolist() == [5, 6, 7, 2, 8, 5, 2]
    assert batch.lengths.tolist() == [5, 2]
    assert batch.loss_mask.tolist() == [False, True, False, False, True, False, True]
    assert batch.advantages.tolist() == [0, 0.5, 0, 0, 0.5, 0, -0.5]
    torch.testing.assert_close(batch.generation_logprobs, torch.tensor([0, -0.6, 0, 0, -0.8, 0, -0.2]))


def test_a_group_without_variance_is_dropped_only_when_asked():
    flat = TrajectoryGroup(question=QUESTION, trajectories=[trajectory([1, 2], [P, S]), trajectory([1, 3], [P, S])])
    assert pack([flat], [torch.zeros(2)], drop_zero_variance=True) is None
    kept = pack([flat], [torch.zeros(2)], drop_zero_variance=False)
    assert kept is not None and kept.num_sequences == 2


def test_what_a_dropped_group_leaves_is_the_same_average_as_if_it_were_there():
    telling = TrajectoryGroup(question=QUESTION, trajectories=[trajectory([1, 2], [P, S]), trajectory([1, 3], [P, S])])
    flat = TrajectoryGroup(question=QUESTION, trajectories=[trajectory([1, i], [P, S]) for i in range(4, 8)])
    advantages = [torch.tensor([0.7, -0.3]), torch.zeros(4)]
    loss = PolicyLoss(
        clip_ratio_low=0.2,
        clip_ratio_high=0.2,
        aggregation=LossAggregation.sequence,
        kl_where=KlPlace.off,
        kl_estimator=KlEstimator.k3,
        kl_coef=0.0,
    )
    means = []
    for drop in (True, False):
        batch = pack([telling, flat], advantages, drop_zero_variance=drop)
        assert batch is not None and batch.num_sequences == (2 if drop else 6)
        logprobs = torch.zeros(batch.num_loss_tokens)
        means.append(float(loss(logprobs, logprobs, batch)[0]) / loss.normalizer(batch))
    assert means[0] == pytest.approx(means[1])
    assert means[1] == pytest.approx(-(0.7 - 0.3) / 6)


def test_minibatches_cover_every_sequence_once_and_keep_tokens_together():
    group = TrajectoryGroup(
        question=QUESTION, trajectories=[trajectory([i, *range(10, 10 + i)], [P] + [S] * i) for i in range(1, 6)]
    )
    batch = pack([group], [torch.arange(1.0, 6.0)], drop_zero_variance=True)
    parts = list(batch.minibatches(2))
    assert [part.num_sequences for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part.token_ids for part in parts]), batch.token_ids)
    assert torch.equal(torch.cat([part.advantages for part in parts]), batch.advantages)


def test_scripted_segments_are_tokenised_one_by_one():
    batch = pack_scripted([[("Q", P), ("<a>", S), ("d", D), ("b", S)]], CharTokenizer())
    assert batch.token_ids.tolist() == [ord(char) for char in "Q<a>db"]
    assert batch.loss_mask.tolist() == [False, True, True, True, False, True]
