"""Trajectories as a training batch."""

import numpy as np
import pytest
import torch

from tests.fakes import CharTokenizer
from zs_nemo.algorithms.grpo import group_relative_advantages, without_zero_variance
from zs_nemo.algorithms.policy_loss import PolicyLoss
from zs_nemo.config.algorithm import GrpoConfig, KlConfig, KlPlace, LossAggregation
from zs_nemo.rollout.packing import pack, pack_scripted
from zs_nemo.rollout.prompt_form import PromptForm
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


def test_rewards_and_the_mask_stand_on_policy_tokens_alone():
    first, second = trajectory([5, 6, 7, 2, 8], [P, S, D, D, S]), trajectory([5, 2, 9], [P, S, D])
    first.reward, second.reward = 0.5, 1.0
    batch = pack([TrajectoryGroup(question=QUESTION, trajectories=[first, second])])
    assert batch is not None
    assert batch.token_ids.tolist() == [5, 6, 7, 2, 8, 5, 2, 9]
    assert batch.lengths.tolist() == [5, 3] and batch.group_ids.tolist() == [0, 0]
    assert batch.loss_mask.tolist() == [False, True, False, False, True, False, True, False]
    assert batch.rewards.tolist() == [0, 0, 0, 0, 0.5, 0, 1.0, 0]
    torch.testing.assert_close(batch.generation_logprobs, torch.tensor([0, -0.6, 0, 0, -0.8, 0, -0.2, 0]))


def test_a_trajectory_without_a_policy_token_is_left_out():
    groups = [
        TrajectoryGroup(question=QUESTION, trajectories=[trajectory([5, 6], [P, D])]),
        TrajectoryGroup(question=QUESTION, trajectories=[trajectory([5, 7], [P, S])]),
    ]
    batch = pack(groups)
    assert batch is not None and batch.token_ids.tolist() == [5, 7] and batch.group_ids.tolist() == [1]
    assert pack(groups[:1]) is None


@pytest.mark.parametrize("aggregation", LossAggregation)
def test_what_a_dropped_group_leaves_is_the_same_average_as_if_it_were_there(aggregation: LossAggregation):
    lengths = np.array([1, 3, 2, 4, 4, 5])
    samples = [trajectory([1, *range(2, 2 + length)], [P] + [S] * length) for length in lengths]
    samples[0].reward = 1.0
    batch = pack([TrajectoryGroup(question=QUESTION, trajectories=part) for part in (samples[:2], samples[2:])])
    assert batch is not None
    whole = batch.replace(advantages=group_relative_advantages(batch, normalize_std=False))
    loss = PolicyLoss.from_config(
        GrpoConfig(loss_aggregation=aggregation, loss_tokens_per_sequence=5, kl=KlConfig(where=KlPlace.off))
    )
    kept = without_zero_variance(whole, loss.normalizer, global_batch_size=6)
    assert kept is not None and (whole.num_sequences, kept.num_sequences) == (6, 2)
    outputs = torch.zeros(2, kept.num_loss_tokens, requires_grad=True)
    (loss(outputs, kept)[0] / loss.normalizer(kept)).backward()
    # Advantages of +-1/2 over one token and three, divided as all six sequences are.
    divisors = {
        LossAggregation.token: np.full(6, lengths.sum()),
        LossAggregation.sequence: 6 * lengths,
        LossAggregation.fixed: np.full(6, 6 * 5),
    }[aggregation]
    expected = np.repeat(np.array([-0.5, 0.5]) / divisors[:2], lengths[:2])
    np.testing.assert_allclose(outputs.grad[0].numpy(), expected, rtol=1e-6)


def test_minibatches_cover_every_sequence_once_keep_tokens_together_and_are_even():
    group = TrajectoryGroup(
        question=QUESTION, trajectories=[trajectory([i, *range(10, 10 + i)], [P] + [S] * i) for i in range(1, 6)]
    )
    batch = pack([group])
    assert batch is not None
    parts = list(batch.minibatches(4))
    assert [part.num_sequences for part in parts] == [3, 2]
    assert torch.equal(torch.cat([part.token_ids for part in parts]), batch.token_ids)
    assert torch.equal(torch.cat([part.rewards for part in parts]), batch.rewards)
    assert len(list(batch.minibatches(5))) == 1


def test_scripted_segments_are_tokenised_one_by_one():
    batch = pack_scripted([[("Q", P), ("<a>", S), ("d", D), ("b", S)]], CharTokenizer(), PromptForm())
    assert batch.token_ids.tolist() == [ord(char) for char in "Q<a>db"]
    assert batch.loss_mask.tolist() == [False, True, True, True, False, True]
