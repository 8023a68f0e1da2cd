"""Advantages, KL, and the losses against NumPy and hand-made cases."""

import numpy as np
import pytest
import torch

from zs_nemo.algorithms.advantages import group_relative_advantages
from zs_nemo.algorithms.kl import kl_estimate
from zs_nemo.algorithms.policy_loss import PolicyLoss
from zs_nemo.algorithms.supervised_loss import SupervisedLoss
from zs_nemo.config.algorithm import KlEstimator, KlPlace, LossAggregation
from zs_nemo.types.batch import TrainBatch


def make_loss(**changes) -> PolicyLoss:
    """Return a loss with the paper's settings."""
    settings = {
        "clip_ratio_low": 0.2,
        "clip_ratio_high": 0.2,
        "aggregation": LossAggregation.token,
        "kl_where": KlPlace.off,
        "kl_estimator": KlEstimator.k3,
        "kl_coef": 0.0,
    }
    return PolicyLoss(**(settings | changes))


def make_batch(advantages: list[list[float]], old: torch.Tensor | None, reference: torch.Tensor | None) -> TrainBatch:
    """Return sequences of one prompt token and then policy tokens with the given advantages."""
    lengths = torch.tensor([1 + len(row) for row in advantages])
    mask = torch.cat([torch.tensor([False] + [True] * len(row)) for row in advantages])

    def spread(values):
        full = torch.zeros(mask.numel())
        full[mask] = values.detach().float()
        return full

    return TrainBatch(
        token_ids=torch.arange(mask.numel()),
        lengths=lengths,
        loss_mask=mask,
        advantages=spread(torch.tensor([value for row in advantages for value in row])),
        generation_logprobs=torch.zeros(mask.numel()),
        policy_logprobs=None if old is None else spread(old),
        reference_logprobs=None if reference is None else spread(reference),
    )


def test_group_advantages_match_numpy():
    rewards = [0.0, 0.25, 1.0, 0.5]
    expected = (np.array(rewards) - np.mean(rewards)) / np.std(rewards, ddof=1)
    np.testing.assert_allclose(group_relative_advantages(rewards, normalize_std=True), expected, rtol=1e-6)
    np.testing.assert_allclose(
        group_relative_advantages(rewards, normalize_std=False), np.array(rewards) - 0.4375, rtol=1e-6
    )


@pytest.mark.parametrize("rewards", [[0.1] * 5, [1.0], []])
def test_a_group_without_variance_has_advantages_of_exactly_zero(rewards):
    assert group_relative_advantages(rewards, normalize_std=True).tolist() == [0.0] * len(rewards)


def test_k1_and_k3_are_unbiased_and_k3_is_never_negative():
    generator = torch.Generator().manual_seed(0)
    logits_p, logits_q = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    p, q = logits_p.log_softmax(0), logits_q.log_softmax(0)
    exact = (p.exp() * (p - q)).sum()
    for estimator in (KlEstimator.k1, KlEstimator.k3):
        assert torch.allclose((p.exp() * kl_estimate(p, q, estimator)).sum(), exact)
    assert (kl_estimate(p, q, KlEstimator.k3) >= 0).all()
    assert kl_estimate(p, p, KlEstimator.k3).abs().max() == 0


@pytest.mark.parametrize("estimator", [KlEstimator.k2, KlEstimator.k3])
def test_a_step_lowers_the_kl_when_only_the_kl_counts(estimator):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(8, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(8, generator=generator, dtype=torch.float64).log_softmax(0)

    def exact_kl() -> torch.Tensor:
        logprobs = logits.log_softmax(0)
        return (logprobs.exp() * (logprobs - reference)).sum()

    before = exact_kl().item()
    tokens = torch.multinomial(logits.detach().softmax(0), 4000, replacement=True, generator=generator)
    logprobs = logits.log_softmax(0)[tokens]
    batch = make_batch([[0.0] * 4000], logprobs, reference[tokens])
    loss_fn = make_loss(kl_where=KlPlace.loss, kl_estimator=estimator, kl_coef=1.0)
    loss, _ = loss_fn(logprobs, torch.zeros(4000), batch)
    (loss / loss_fn.normalizer(batch)).backward()
    with torch.no_grad():
        logits -= 0.1 * logits.grad
    assert exact_kl().item() < before - 1e-3


def test_the_clipped_objective_matches_a_loop_over_tokens():
    generator = torch.Generator().manual_seed(2)
    old = -torch.rand(6, generator=generator)
    now = old + 0.6 * torch.randn(6, generator=generator)
    advantages = [1.0, -1.0, 0.5, -0.5, 2.0, -2.0]
    expected = 0.0
    for p_new, p_old, advantage in zip(now.tolist(), old.tolist(), advantages, strict=True):
        ratio = np.exp(p_new - p_old)
        expected -= min(ratio * advantage, float(np.clip(ratio, 0.8, 1.3)) * advantage)
    batch = make_batch([advantages], old, None)
    loss, metrics = make_loss(clip_ratio_high=0.3)(now, torch.zeros(6), batch)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert metrics["ratio_max"].item() == pytest.approx(np.exp((now - old).max().item()), rel=1e-5)


def test_a_better_than_average_token_becomes_more_likely():
    logits = torch.zeros(4, requires_grad=True)
    batch = make_batch([[1.0]], None, None)
    loss, metrics = make_loss()(logits.log_softmax(0)[2:3], torch.zeros(1), batch)
    loss.backward()
    assert logits.grad[2] < 0 and (logits.grad[[0, 1, 3]] > 0).all()
    assert metrics["ratio"].item() == 1.0


@pytest.mark.parametrize("aggregation", list(LossAggregation))
def test_the_loss_of_a_batch_does_not_depend_on_how_it_is_cut(aggregation):
    generator = torch.Generator().manual_seed(3)
    rows = [[0.3] * 2, [-0.7] * 5, [1.1] * 3]
    old = -torch.rand(10, generator=generator)
    now = old + 0.1 * torch.randn(10, generator=generator)
    batch = make_batch(rows, old, old - 0.05)
    loss_fn = make_loss(aggregation=aggregation, kl_where=KlPlace.loss, kl_coef=0.1)
    whole, metrics = loss_fn(now, torch.ones(10), batch)
    parts = [
        loss_fn(now[a:b], torch.ones(b - a), batch.select([i])) for i, (a, b) in enumerate([(0, 2), (2, 7), (7, 10)])
    ]
    assert torch.allclose(sum(part[0] for part in parts), whole)
    assert torch.allclose(sum(part[1]["kl"] for part in parts), metrics["kl"])
    assert loss_fn.normalizer(batch) == (10 if aggregation is LossAggregation.token else 3)


def test_sequence_aggregation_gives_every_answer_the_same_weight():
    batch = make_batch([[1.0], [1.0] * 9], None, None)
    loss, _ = make_loss(aggregation=LossAggregation.sequence)(torch.zeros(10), torch.zeros(10), batch)
    assert loss.item() == pytest.approx(-2.0)


def test_the_supervised_loss_is_the_negative_log_likelihood():
    batch = make_batch([[0.0] * 3], None, None)
    loss_fn = SupervisedLoss()
    loss, _ = loss_fn(torch.tensor([-1.0, -2.0, -3.0]), torch.zeros(3), batch)
    assert loss.item() / loss_fn.normalizer(batch) == pytest.approx(2.0)
