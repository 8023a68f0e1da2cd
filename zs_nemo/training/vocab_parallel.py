"""Log-probabilities and entropies from logits that are cut over tensor-parallel ranks by vocabulary."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp, all_reduce

_ELEMENTS_PER_CHUNK = {"cpu": 2**21, "cuda": 2**27}


class _LogprobsAndEntropy(torch.autograd.Function):
    """Works chunk by chunk in float32; what stays in memory for the backward pass is the logits as they came."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, temperature: float, vocab_size: int, group: ProcessGroup
    ) -> Tensor:
        """Return float32 [2, N]: logprobs of the targets, entropies."""
        first = group.rank() * logits.shape[1]
        num_columns = min(logits.shape[1], vocab_size - first)
        local = targets - first
        is_local = (local >= 0) & (local < num_columns)
        local = torch.where(is_local, local, 0)
        rows = logits.shape[0]
        peak, total, weighted, chosen = (torch.empty(rows, device=logits.device) for _ in range(4))
        for part in _chunks(logits):
            z = _scaled(logits[part, :num_columns], temperature)
            peak[part] = z.amax(1)
            chosen[part] = z.gather(1, local[part, None]).squeeze(1)
            # Sums relative to this rank's own maximum; they are brought to the common one below.
            z.sub_(peak[part, None])
            e = z.exp()
            total[part] = e.sum(1)
            weighted[part] = e.mul_(z).sum(1)
        if group.size() > 1:
            local_peak = peak.clone()
            all_reduce(peak, op=ReduceOp.MAX, group=group)
            shift = local_peak - peak
            weighted = (weighted + shift * total) * shift.exp()
            sums = torch.stack([total * shift.exp(), weighted, torch.where(is_local, chosen, 0)])
            all_reduce(sums, group=group)
            total, weighted, chosen = sums
        log_total = total.log()
        log_normalizer = peak + log_total
        entropy = log_total - weighted / total
        ctx.save_for_backward(logits, local, is_local, log_normalizer, entropy)
        ctx.temperature, ctx.num_columns = temperature, num_columns
        return torch.stack([chosen - log_normalizer, entropy])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Propagate: d logprob / d z = onehot - p;  d entropy / d z = -p (log p + entropy)."""
        logits, local, is_local, log_normalizer, entropy = ctx.saved_tensors
        grad_logprobs, grad_entropy = grads[0] / ctx.temperature
        needs_entropy = bool(grad_entropy.any())
        grad = torch.empty_like(logits)
        grad[:, ctx.num_columns :] = 0
        for part in _chunks(logits):
            log_p = _scaled(logits[part, : ctx.num_columns], ctx.temperature).sub_(log_normalizer[part, None])
            p = log_p.exp()
            weight = -grad_logprobs[part, None]
            if needs_entropy:
                weight = weight - grad_entropy[part, None] * log_p.add_(entropy[part, None])
            p.mul_(weight)
            p.scatter_add_(1, local[part, None], (grad_logprobs[part] * is_local[part])[:, None])
            grad[part, : ctx.num_columns] = p
        return grad, None, None, None, None


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """Return a float32 copy, divided; a copy also when the logits are float32, for it is changed in place."""
    return logits.to(torch.float32, copy=True).div_(temperature)


def _chunks(logits: Tensor) -> list[slice]:
    rows = max(1, _ELEMENTS_PER_CHUNK[logits.device.type] // max(1, logits.shape[1]))
    return [slice(start, start + rows) for start in range(0, logits.shape[0], rows)]


def logprobs_and_entropy(
    logits: Tensor, targets: Tensor, *, temperature: float, vocab_size: int, group: ProcessGroup
) -> Tensor:
    """Return float32 [2, N]: log p(target) and the entropy in nats, of softmax(logits / temperature).

    ``logits`` [N, V / ranks] are this rank's columns; columns beyond ``vocab_size`` in the whole row are padding and
    get no probability. Every rank of ``group`` gets the same result.
    """
    return _LogprobsAndEntropy.apply(logits, targets, temperature, vocab_size, group)
