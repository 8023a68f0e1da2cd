"""Advantages of the three algorithms against loops in NumPy and cases worked out by hand."""

import numpy as np
import pytest
import torch

from tests.unit.algorithms.batches import batch_of, by_sequence, rewarded
from zs_nemo.algorithms.gae import discounted_sums, generalized_advantages
from zs_nemo.algorithms.grpo import group_relative_advantages, without_zero_variance
from zs_nemo.algorithms.reinforce_pp import reinforce_pp_advantages
from zs_nemo.algorithms.token_rewards import token_rewards
from zs_nemo.algorithms.value_loss import explained_variance
from zs_nemo.algorithms.whitening import whiten
from zs_nemo.config.algorithm import KlConfig, KlEstimator, KlPlace

LAYOUTS = ["psddss", "pps", "psdsdds", "pss"]
GROUPS = [0, 0, 1, 1]
REWARDS = [0.2, 1.0, 0.5, 0.0]


def test_group_relative_advantages_match_numpy_and_stand_on_policy_tokens_alone():
    batch = rewarded(LAYOUTS, REWARDS, GROUPS)
    for normalize_std in (True, False):
        advantages = group_relative_advantages(batch, normalize_std=normalize_std)
        assert advantages[~batch.loss_mask].abs().max() == 0
        for group in (0, 1):
            members = [index for index in range(4) if GROUPS[index] == group]
            rewards = np.array([REWARDS[index] for index in members])
            expected = rewards - rewards.mean()
            if normalize_std:
                expected /= np.std(rewards, ddof=1)
            for index, value in zip(members, expected, strict=True):
                np.testing.assert_allclose(by_sequence(batch, advantages)[index], value, rtol=1e-6)


def test_members_of_a_group_need_not_be_neighbours():
    batch = rewarded(["ps", "ps", "ps", "ps"], [1.0, 0.2, 0.0, 0.4], [0, 1, 0, 1])
    advantages = group_relative_advantages(batch, normalize_std=False)
    assert advantages[batch.loss_mask].tolist() == pytest.approx([0.5, -0.1, -0.5, 0.1])


@pytest.mark.parametrize("rewards", [[0.1] * 5, [1.0], [0.3, 0.3 + 2e-7, 0.3, 0.3]])
def test_a_group_without_variance_has_advantages_of_exactly_zero(rewards):
    batch = rewarded(["pss"] * len(rewards), rewards, [0] * len(rewards))
    assert group_relative_advantages(batch, normalize_std=True).abs().max() == 0


def test_a_group_without_variance_is_left_out_and_the_rest_scaled_by_what_is_kept():
    batch = rewarded(["ps", "pss", "psds", "ps"], [0.3, 0.3, 1.0, 0.0], [0, 0, 1, 1])
    batch = batch.replace(advantages=group_relative_advantages(batch, normalize_std=False))
    kept = without_zero_variance(batch, lambda part: part.num_sequences, global_batch_size=4)
    assert kept is not None and kept.lengths.tolist() == [4, 2] and kept.group_ids.tolist() == [1, 1]
    assert kept.advantages.tolist() == pytest.approx([0, 0.25, 0, 0.25, 0, -0.25])


@pytest.mark.parametrize("global_batch_size", [16, 8, 4, 2])
def test_leaving_out_makes_the_updates_of_a_step_together_no_smaller(global_batch_size):
    rewards = [1.0, 0.0] * 4 + [0.5] * 8
    batch = rewarded(["ps"] * 16, rewards, [number // 2 for number in range(16)])
    batch = batch.replace(advantages=group_relative_advantages(batch, normalize_std=False))
    kept = without_zero_variance(batch, lambda part: part.num_sequences, global_batch_size=global_batch_size)
    sums = [
        sum(float(part.advantages.abs().sum()) / part.num_sequences for part in each.minibatches(global_batch_size))
        for each in (batch, kept)
    ]
    assert sums[1] == pytest.approx(sums[0])


def test_a_step_in_which_all_rewards_are_equal_leaves_nothing():
    batch = rewarded(["ps", "pss"], [0.3, 0.3], [0, 0])
    batch = batch.replace(advantages=group_relative_advantages(batch, normalize_std=True))
    assert without_zero_variance(batch, lambda part: part.num_sequences, global_batch_size=2) is None


def test_generalized_advantages_worked_out_by_hand_go_across_documents():
    # One search: the query's token, two document tokens, the answer's two tokens, reward 1 at the end.
    batch = batch_of(["psddss"], values=[0.5, 0.2, 0.4])
    rewards = batch_of(["psddss"], rewards=[0.0, 0.0, 1.0]).rewards
    gamma, gae_lambda = 0.9, 0.5
    last = 1.0 - 0.4
    middle = (0.9 * 0.4 - 0.2) + 0.45 * last
    first = (0.9 * 0.2 - 0.5) + 0.45 * middle
    advantages, returns = generalized_advantages(batch, rewards, gamma=gamma, gae_lambda=gae_lambda)
    assert advantages.tolist() == pytest.approx([0, first, 0, 0, middle, last])
    assert returns.tolist() == pytest.approx([0, first + 0.5, 0, 0, middle + 0.2, last + 0.4])


def test_generalized_advantages_match_a_loop_over_each_sequence():
    generator = np.random.default_rng(0)
    counts = [layout.count("s") for layout in LAYOUTS]
    batch = batch_of(LAYOUTS, values=generator.normal(size=sum(counts)), rewards=generator.normal(size=sum(counts)))
    gamma, gae_lambda = 0.97, 0.9
    advantages, returns = generalized_advantages(batch, batch.rewards, gamma=gamma, gae_lambda=gae_lambda)
    values, rewards = by_sequence(batch, batch.values), by_sequence(batch, batch.rewards)
    for index, count in enumerate(counts):
        deltas = [
            rewards[index][t] + gamma * (values[index][t + 1] if t + 1 < count else 0.0) - values[index][t]
            for t in range(count)
        ]
        expected = [
            sum((gamma * gae_lambda) ** (later - t) * deltas[later] for later in range(t, count)) for t in range(count)
        ]
        np.testing.assert_allclose(by_sequence(batch, advantages)[index], expected, rtol=1e-5)
        np.testing.assert_allclose(by_sequence(batch, returns)[index], expected + values[index], rtol=1e-5)


def test_with_lambda_one_the_return_is_the_discounted_reward_whatever_the_critic_says():
    batch = rewarded(LAYOUTS, REWARDS)
    batch = batch.replace(values=torch.where(batch.loss_mask, torch.randn(batch.token_ids.numel()), 0.0))
    _, returns = generalized_advantages(batch, batch.rewards, gamma=1.0, gae_lambda=1.0)
    for values, reward in zip(by_sequence(batch, returns), REWARDS, strict=True):
        np.testing.assert_allclose(values, reward, atol=1e-6)


def test_text_that_the_policy_did_not_write_changes_nothing():
    layouts = ["psddddss", "ps"], ["psss", "ps"]
    results = []
    for layout in layouts:
        batch = batch_of(layout, values=[0.1, 0.3, 0.2, 0.5], rewards=[0, 0, 1, 0.5])
        advantages, returns = generalized_advantages(batch, batch.rewards, gamma=0.9, gae_lambda=0.8)
        results.append((whiten(advantages, batch.loss_mask)[batch.loss_mask], returns[batch.loss_mask]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_reinforce_pp_whitens_the_rewards_that_follow_over_the_whole_step():
    batch = rewarded(LAYOUTS, REWARDS, GROUPS)
    penalty = batch_of(LAYOUTS, rewards=np.linspace(-0.2, 0.3, 9)).rewards
    rewards = batch.rewards - penalty
    advantages = reinforce_pp_advantages(batch, rewards, gamma=0.9, group_baseline=False)
    following = []
    for row in by_sequence(batch, rewards):
        following += [sum(0.9 ** (later - t) * row[later] for later in range(t, len(row))) for t in range(len(row))]
    expected = (np.array(following) - np.mean(following)) / np.std(following, ddof=1)
    np.testing.assert_allclose(np.concatenate(by_sequence(batch, advantages)), expected, rtol=1e-4, atol=1e-6)


def test_the_group_baseline_takes_the_mean_of_the_group_off_before_whitening():
    batch = rewarded(LAYOUTS, REWARDS, GROUPS)
    advantages = reinforce_pp_advantages(batch, batch.rewards, gamma=1.0, group_baseline=True)
    raw = np.concatenate([np.full(n, value) for n, value in zip([3, 1, 3, 2], [-0.4, 0.4, 0.25, -0.25], strict=True)])
    expected = (raw - raw.mean()) / raw.std(ddof=1)
    np.testing.assert_allclose(np.concatenate(by_sequence(batch, advantages)), expected, rtol=1e-5)


def test_with_a_discount_the_baseline_shrinks_as_the_reward_does():
    batch = rewarded(["psss", "psss"], [0.5, 0.5], [0, 0])
    assert reinforce_pp_advantages(batch, batch.rewards, gamma=0.5, group_baseline=True).abs().max() == 0


@pytest.mark.parametrize("group_baseline", [True, False])
def test_reinforce_pp_with_all_rewards_equal_has_nothing_to_say(group_baseline):
    batch = rewarded(LAYOUTS, [0.3] * 4, GROUPS)
    advantages = reinforce_pp_advantages(batch, batch.rewards, gamma=1.0, group_baseline=group_baseline)
    assert advantages.abs().max() == 0


def test_whitening_makes_no_full_update_of_values_that_hardly_differ():
    values = torch.tensor([1e-9, 2e-9, 4e-9])
    assert whiten(values, torch.ones(3, dtype=torch.bool)).abs().max() < 1e-3


def test_plain_reinforce_has_the_reward_on_every_token():
    batch = rewarded(["psds", "pss"], [0.5, 1.0], [0, 0])
    advantages = reinforce_pp_advantages(batch, batch.rewards, gamma=1.0, group_baseline=False, whitened=False)
    assert advantages.dtype == torch.float32 and advantages.tolist() == [0, 0.5, 0, 0.5, 0, 1.0, 1.0]


def test_whitening_ignores_what_is_off_the_mask_and_leaves_it_at_zero():
    mask = torch.tensor([True, False, True, True])
    values = torch.tensor([1.0, 1e6, 2.0, 6.0])
    whitened = whiten(values, mask)
    chosen = np.array([1.0, 2.0, 6.0])
    np.testing.assert_allclose(whitened[mask], (chosen - 3) / np.std(chosen, ddof=1), rtol=1e-6)
    assert whitened[1] == 0


@pytest.mark.parametrize("mask", [[False, False], [True, False], [True, True]])
def test_whitening_of_nothing_or_of_equal_values_is_zero(mask):
    assert whiten(torch.tensor([0.1, 0.1]), torch.tensor(mask)).tolist() == [0.0, 0.0]


def test_the_kl_penalty_stands_on_every_policy_token_and_the_reward_on_the_last():
    policy, reference = [-1.0, -0.5, -0.2], [-1.5, -0.4, -0.2]
    batch = batch_of(["psds", "ps"], policy_logprobs=policy, reference_logprobs=reference, rewards=[0.0, 1.0, 0.5])
    kl = KlConfig(where=KlPlace.reward, estimator=KlEstimator.k1, coef=0.1)
    assert token_rewards(batch, kl).tolist() == pytest.approx([0, -0.05, 0, 1.01, 0, 0.5])
    assert torch.equal(token_rewards(batch, KlConfig(where=KlPlace.loss, coef=0.1)), batch.rewards)


def test_an_empty_mask_gives_empty_sums():
    batch = batch_of(["pd", "pdd"], rewards=[])
    assert discounted_sums(batch, batch.rewards, 0.9).tolist() == [0.0] * 5


def test_explained_variance_is_one_for_a_perfect_critic_and_zero_for_a_constant():
    returns = [0.0, 1.0, 0.5, 0.2]
    batch = batch_of(["psds", "pss"], returns=returns, values=returns)
    assert explained_variance(batch) == pytest.approx(1.0)
    assert explained_variance(batch_of(["psds", "pss"], returns=returns, values=[0.4] * 4)) == pytest.approx(0.0)
    values = np.array([0.1, 0.8, 0.7, 0.1])
    expected = 1 - np.var(np.array(returns) - values) / np.var(returns)
    assert explained_variance(batch_of(["psds", "pss"], returns=returns, values=values)) == pytest.approx(expected)
    assert explained_variance(batch_of(["pss"], returns=[0.5, 0.5], values=[0.0, 1.0])) == 0.0
