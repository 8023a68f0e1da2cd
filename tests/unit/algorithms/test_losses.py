"""KL and losses against NumPy, finite differences, and cases worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.unit.algorithms.batches import batch_of
from zs_nemo.algorithms.aggregation import Aggregation
from zs_nemo.algorithms.importance import truncated_importance_weights
from zs_nemo.algorithms.kl import kl_estimate
from zs_nemo.algorithms.policy_loss import PolicyLoss
from zs_nemo.algorithms.supervised_loss import SupervisedLoss
from zs_nemo.algorithms.value_loss import ValueLoss
from zs_nemo.config.algorithm import ImportanceLevel, KlEstimator, KlPlace, LossAggregation
from zs_nemo.types.batch import TrainBatch
from zs_nemo.types.loss import TokenLoss

LAYOUTS = ["psddss", "pps", "pssss"]
NUM_TOKENS = 8


def make_loss(aggregation: LossAggregation = LossAggregation.token, **changes) -> PolicyLoss:
    """Return a loss with the paper's settings and without a KL term."""
    settings = {
        "clip_ratio_low": 0.2,
        "clip_ratio_high": 0.2,
        "aggregation": Aggregation(over=aggregation, tokens_per_sequence=10),
        "kl_where": KlPlace.off,
        "kl_estimator": KlEstimator.k3,
        "kl_coef": 0.0,
    }
    return PolicyLoss(**(settings | changes))


def random_batch(seed: int = 0, **given) -> tuple[TrainBatch, torch.Tensor]:
    """Return a batch with everything that a loss may look at, and float64 outputs [2, N] near its old logprobs."""
    generator = np.random.default_rng(seed)
    old = -generator.random(NUM_TOKENS)
    fields = {
        "advantages": generator.normal(size=NUM_TOKENS),
        "policy_logprobs": old,
        "reference_logprobs": old + 0.2 * generator.normal(size=NUM_TOKENS),
        "generation_logprobs": old + 0.3 * generator.normal(size=NUM_TOKENS),
    }
    logprobs = old + 0.4 * generator.normal(size=NUM_TOKENS)
    batch = batch_of(LAYOUTS, **(fields | given))
    return batch, torch.tensor(np.stack([logprobs, generator.random(NUM_TOKENS)]))


def numpy_policy_loss(
    batch: TrainBatch, outputs: torch.Tensor, weights, *, low=0.2, high=0.2, kl=None, kl_coef=0.0, entropy_coef=0.0
) -> float:
    """Return the summed loss from the formulas, token by token."""
    mask = batch.loss_mask
    now, entropy = outputs.numpy()
    old, reference = batch.policy_logprobs[mask].numpy(), batch.reference_logprobs[mask].numpy()
    total = 0.0
    for t, advantage in enumerate(batch.advantages[mask].tolist()):
        ratio = np.exp(now[t] - old[t])
        surrogate = min(ratio * advantage, max(1 - low, min(1 + high, ratio)) * advantage)
        d = now[t] - reference[t]
        penalty = {None: 0.0, "k2": d * d / 2, "k3": np.exp(-d) - 1 + d}[kl]
        total += weights[t] * (-surrogate + kl_coef * penalty - entropy_coef * entropy[t])
    return total


def check_gradient(loss_fn: TokenLoss, batch: TrainBatch, outputs: torch.Tensor) -> None:
    """Compare autograd with central differences, in float64."""
    outputs = outputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_fn(outputs, batch)[0], outputs)
    step = 1e-6
    for index in np.ndindex(*outputs.shape):
        moved = [outputs.detach().clone() for _ in range(2)]
        moved[0][index] += step
        moved[1][index] -= step
        high, low = (loss_fn(each, batch)[0].item() for each in moved)
        assert gradient[index].item() == pytest.approx((high - low) / (2 * step), rel=1e-4, abs=1e-6), index


def test_k1_and_k3_are_unbiased_and_k3_is_never_negative():
    generator = torch.Generator().manual_seed(0)
    logits_p, logits_q = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    p, q = logits_p.log_softmax(0), logits_q.log_softmax(0)
    exact = (p.exp() * (p - q)).sum()
    for estimator in (KlEstimator.k1, KlEstimator.k3):
        assert torch.allclose((p.exp() * kl_estimate(p, q, estimator)).sum(), exact)
    assert (kl_estimate(p, q, KlEstimator.k3) >= 0).all()
    assert kl_estimate(p, p, KlEstimator.k3).abs().max() == 0


def test_the_kl_estimators_match_their_formulas():
    p, q = np.array([-1.0, -0.2, -3.0]), np.array([-0.5, -0.9, -3.0])
    d = p - q
    formulas = {KlEstimator.k1: d, KlEstimator.k2: d**2 / 2, KlEstimator.k3: np.exp(q - p) - (q - p) - 1}
    for estimator, expected in formulas.items():
        np.testing.assert_allclose(kl_estimate(torch.tensor(p), torch.tensor(q), estimator), expected, atol=1e-12)


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
    batch = batch_of(
        ["p" + "s" * 4000],
        advantages=[0.0] * 4000,
        policy_logprobs=logprobs.detach(),
        reference_logprobs=reference[tokens],
    )
    loss_fn = make_loss(kl_where=KlPlace.loss, kl_estimator=estimator, kl_coef=1.0)
    loss, _ = loss_fn(torch.stack([logprobs, torch.zeros(4000)]), batch)
    (loss / loss_fn.normalizer(batch)).backward()
    with torch.no_grad():
        logits -= 0.1 * logits.grad
    assert exact_kl().item() < before - 1e-3


@pytest.mark.parametrize(
    ("aggregation", "weights", "normalizer"),
    [
        (LossAggregation.token, [1.0] * 8, 8),
        (LossAggregation.sequence, [1 / 3] * 3 + [1.0] + [1 / 4] * 4, 3),
        (LossAggregation.fixed, [1.0] * 8, 30),
    ],
)
def test_the_policy_loss_matches_a_loop_over_tokens(aggregation, weights, normalizer):
    batch, outputs = random_batch()
    for kl in (None, "k2", "k3"):
        loss_fn = make_loss(
            aggregation,
            clip_ratio_high=0.3,
            kl_where=KlPlace.loss if kl else KlPlace.off,
            kl_estimator=KlEstimator(kl or "k3"),
            kl_coef=0.5,
            entropy_coef=0.1,
        )
        expected = numpy_policy_loss(batch, outputs, weights, high=0.3, kl=kl, kl_coef=0.5, entropy_coef=0.1)
        assert loss_fn(outputs, batch)[0].item() == pytest.approx(expected, rel=1e-5)
        assert loss_fn.normalizer(batch) == normalizer


@pytest.mark.parametrize("aggregation", list(LossAggregation))
@pytest.mark.parametrize("level", list(ImportanceLevel))
@pytest.mark.parametrize("estimator", [KlEstimator.k2, KlEstimator.k3])
def test_gradients_of_the_policy_loss_match_finite_differences(aggregation, level, estimator):
    batch, outputs = random_batch(seed=1)
    loss_fn = make_loss(
        aggregation,
        kl_where=KlPlace.loss,
        kl_estimator=estimator,
        kl_coef=0.3,
        entropy_coef=0.1,
        importance_level=level,
        importance_cap=1.2,
    )
    check_gradient(loss_fn, batch, outputs)


@pytest.mark.parametrize("clip_range", [0.0, 0.1])
def test_gradients_of_the_value_loss_match_finite_differences(clip_range):
    generator = np.random.default_rng(2)
    batch = batch_of(LAYOUTS, values=generator.normal(size=NUM_TOKENS), returns=generator.normal(size=NUM_TOKENS))
    check_gradient(ValueLoss(clip_range=clip_range), batch, torch.tensor(generator.normal(size=(1, NUM_TOKENS))))


def test_a_batch_without_old_logprobs_is_its_own_start():
    batch, outputs = random_batch()
    outputs.requires_grad_()
    loss_fn = make_loss()
    loss, metrics = loss_fn(outputs, replace(batch, policy_logprobs=None))
    loss.backward()
    assert metrics["ratio"].item() == NUM_TOKENS and metrics["ratio_max"].item() == 1.0
    torch.testing.assert_close(outputs.grad[0], -batch.advantages[batch.loss_mask].double())


def test_metrics_are_sums_over_tokens_whatever_the_aggregation():
    batch, outputs = random_batch()
    sums = [make_loss(aggregation)(outputs, batch)[1] for aggregation in LossAggregation]
    assert sums[0] == sums[1] == sums[2]
    ratio = np.exp(outputs[0].numpy() - batch.policy_logprobs[batch.loss_mask].numpy())
    assert sums[0]["ratio"].item() == pytest.approx(ratio.sum(), rel=1e-6)
    assert sums[0]["entropy"].item() == pytest.approx(outputs[1].sum().item())


@pytest.mark.parametrize("aggregation", list(LossAggregation))
def test_the_loss_of_a_batch_does_not_depend_on_how_it_is_cut(aggregation):
    batch, outputs = random_batch()
    loss_fn = make_loss(
        aggregation, kl_where=KlPlace.loss, kl_coef=0.1, importance_level=ImportanceLevel.sequence, entropy_coef=0.2
    )
    whole, metrics = loss_fn(outputs, batch)
    cuts = [(0, 3), (3, 4), (4, 8)]
    parts = [loss_fn(outputs[:, a:b], batch.select([index])) for index, (a, b) in enumerate(cuts)]
    assert torch.allclose(sum(part[0] for part in parts), whole)
    assert torch.allclose(sum(part[1]["kl"] for part in parts), metrics["kl"])
    assert sum(loss_fn.normalizer(batch.select([index])) for index in range(3)) == loss_fn.normalizer(batch)


def test_sequences_without_a_policy_token_weigh_nothing_in_a_mean_over_sequences():
    batch = batch_of(["pd", "pss"], advantages=[1.0, 1.0])
    loss_fn = make_loss(LossAggregation.sequence)
    assert loss_fn.normalizer(batch) == 1
    assert loss_fn(torch.zeros(2, 2), batch)[0].item() == pytest.approx(-1.0)


def test_a_part_without_a_policy_token_has_a_loss_of_zero():
    batch = batch_of(["pd"], advantages=[], returns=[], values=[])
    assert make_loss()(torch.zeros(2, 0), batch)[0].item() == 0.0
    assert ValueLoss(clip_range=0.2)(torch.zeros(1, 0), batch)[0].item() == 0.0


def test_importance_weights_are_capped_ratios_of_tokens_or_of_whole_trajectories():
    ratios = np.array([0.5, 1.5, 3.0, 0.1, 1.1, 1.2, 0.9, 2.5])
    batch = batch_of(LAYOUTS, generation_logprobs=-np.log(ratios) - 1.0)
    now = torch.full((NUM_TOKENS,), -1.0)
    weights, is_capped = truncated_importance_weights(now, batch, level=ImportanceLevel.token, cap=2.0)
    np.testing.assert_allclose(weights, np.minimum(ratios, 2.0), rtol=1e-5)
    assert is_capped.tolist() == [0, 0, 1, 0, 0, 0, 0, 1]
    weights, is_capped = truncated_importance_weights(now, batch, level=ImportanceLevel.sequence, cap=2.5)
    products = [2.25] * 3 + [0.1] + [1.1 * 1.2 * 0.9 * 2.5] * 4
    np.testing.assert_allclose(weights, np.minimum(products, 2.5), rtol=1e-5)
    assert is_capped.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_importance_weights_scale_the_policy_term_and_not_the_kl():
    batch, outputs = random_batch(generation_logprobs=[-5.0] * NUM_TOKENS)
    plain = make_loss()(outputs, batch)[0]
    kl_only = make_loss(kl_where=KlPlace.loss, kl_coef=1.0)(outputs, batch)[0] - plain
    corrected = make_loss(
        kl_where=KlPlace.loss, kl_coef=1.0, importance_level=ImportanceLevel.token, importance_cap=3.0
    )
    loss, metrics = corrected(outputs, batch)
    assert loss.item() == pytest.approx((3.0 * plain + kl_only).item(), rel=1e-6)
    assert metrics["importance_capped_share"].item() == NUM_TOKENS


def test_the_value_loss_takes_the_worse_of_the_clipped_and_the_plain_error():
    batch = batch_of(["psdss"], values=[0.5, 0.5, 0.5], returns=[1.0, 1.0, 0.4])
    loss, metrics = ValueLoss(clip_range=0.2)(torch.tensor([[0.9, 0.6, 0.4]]), batch)
    # The first has moved 0.4 towards its return: only 0.2 of it counts.
    assert loss.item() == pytest.approx(0.5 * (0.3**2 + 0.4**2 + 0.0**2))
    assert metrics["value_clip_share"].item() == 1.0
    loss, _ = ValueLoss(clip_range=0.0)(torch.tensor([[0.9, 0.6, 0.4]]), batch)
    assert loss.item() == pytest.approx(0.5 * (0.1**2 + 0.4**2 + 0.0**2))


def test_the_supervised_loss_is_the_negative_log_likelihood():
    batch = batch_of(["psss"])
    loss_fn = SupervisedLoss()
    loss, _ = loss_fn(torch.tensor([[-1.0, -2.0, -3.0], [0.0, 0.0, 0.0]]), batch)
    assert loss.item() / loss_fn.normalizer(batch) == pytest.approx(2.0)
