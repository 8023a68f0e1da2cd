"""Estimators of KL(policy || reference) from tokens that the policy sampled."""

from torch import Tensor

from zs_nemo.config.algorithm import KlEstimator


def kl_estimate(policy_logprobs: Tensor, reference_logprobs: Tensor, estimator: KlEstimator) -> Tensor:
    """Return the estimate per token, of the shape of its inputs, in nats.

    With d = log p_policy - log p_reference: k1 = d is unbiased and may be negative, k2 = d^2 / 2 is biased with little
    variance, k3 = exp(-d) - 1 + d is unbiased and never negative (Schulman 2020, "Approximating KL divergence").
    The gradient flows through ``policy_logprobs``; adding ``coef * kl`` to a loss that is minimised pulls the policy
    towards the reference. As a loss, k1 has a gradient of mean zero and does not pull: use k2 or k3 there.
    """
    difference = policy_logprobs - reference_logprobs
    if estimator is KlEstimator.k1:
        return difference
    if estimator is KlEstimator.k2:
        return 0.5 * difference.square()
    # expm1 keeps the digits where policy and reference nearly agree, which is where training starts.
    return (-difference).expm1() + difference
