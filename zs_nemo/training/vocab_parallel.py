"""Log-probabilities and entropies from logits that are cut over tensor-parallel ranks by vocabulary.

All is computed in float32, of which no matrix as large as the logits is kept: a CPU works chunk by chunk, and for a GPU
each direction is compiled into kernels that read the logits as they came.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp, all_reduce

from zs_nemo.training.kernels import compiled

_ELEMENTS_PER_CHUNK = 2**21


class _LogprobsAndEntropy(torch.autograd.Function):
    """What stays in memory for the backward pass is the logits."""

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
        sums_of_rows = _compiled_row_sums if logits.is_cuda else _row_sums_in_chunks
        # Relative to this rank's own maximum; they are brought to the common one below.
        peak, total, weighted, chosen = sums_of_rows(logits, local, num_columns, temperature)
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
        grad_of_logits = _compiled_logit_grad if logits.is_cuda else _logit_grad_in_chunks
        chosen = torch.where(is_local, local, -1)
        of_rows = chosen, log_normalizer, entropy, grad_logprobs, grad_entropy
        return grad_of_logits(logits, *of_rows, ctx.num_columns, ctx.temperature), None, None, None, None


def row_sums(
    logits: Tensor, chosen: Tensor, num_columns: int, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return for each row, with z = logits / temperature and e = exp(z - max z): max z, sum e, sum e z, z[chosen]."""
    z = logits[:, :num_columns].float() / temperature
    peak = z.amax(1)
    above = z - peak[:, None]
    e = above.exp()
    return peak, e.sum(1), (e * above).sum(1), z.gather(1, chosen[:, None]).squeeze(1)


def logit_grad(
    logits: Tensor,
    chosen: Tensor,
    log_normalizer: Tensor,
    entropy: Tensor,
    grad_logprobs: Tensor,
    grad_entropy: Tensor,
    num_columns: int,
    temperature: float,
) -> Tensor:
    """Return what ``_LogprobsAndEntropy.backward`` does; ``chosen`` is -1 where the target is another rank's."""
    columns = torch.arange(logits.shape[1], device=logits.device)
    log_p = logits.float() / temperature - log_normalizer[:, None]
    weight = grad_logprobs[:, None] + grad_entropy[:, None] * (log_p + entropy[:, None])
    grad = torch.where(columns == chosen[:, None], grad_logprobs[:, None], 0) - log_p.exp() * weight
    return torch.where(columns < num_columns, grad, 0).to(logits.dtype)


_compiled_row_sums, _compiled_logit_grad = compiled(row_sums), compiled(logit_grad)


def _row_sums_in_chunks(
    logits: Tensor, chosen: Tensor, num_columns: int, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    peak, total, weighted, of_chosen = (torch.empty(logits.shape[0]) for _ in range(4))
    for part in _chunks(logits):
        z = _scaled(logits[part, :num_columns], temperature)
        peak[part] = z.amax(1)
        of_chosen[part] = z.gather(1, chosen[part, None]).squeeze(1)
        z.sub_(peak[part, None])
        e = z.exp()
        total[part] = e.sum(1)
        weighted[part] = e.mul_(z).sum(1)
    return peak, total, weighted, of_chosen


def _logit_grad_in_chunks(
    logits: Tensor,
    chosen: Tensor,
    log_normalizer: Tensor,
    entropy: Tensor,
    grad_logprobs: Tensor,
    grad_entropy: Tensor,
    num_columns: int,
    temperature: float,
) -> Tensor:
    needs_entropy = bool(grad_entropy.any())
    is_local = chosen >= 0
    grad = torch.empty_like(logits)
    grad[:, num_columns:] = 0
    for part in _chunks(logits):
        log_p = _scaled(logits[part, :num_columns], temperature).sub_(log_normalizer[part, None])
        p = log_p.exp()
        weight = -grad_logprobs[part, None]
        if needs_entropy:
            weight = weight - grad_entropy[part, None] * log_p.add_(entropy[part, None])
        p.mul_(weight)
        p.scatter_add_(1, chosen[part, None].clamp(min=0), (grad_logprobs[part] * is_local[part])[:, None])
        grad[part, :num_columns] = p
    return grad


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """Return a float32 copy, divided; a copy also when the logits are float32, for it is changed in place."""
    return logits.to(torch.float32, copy=True).div_(temperature)


def _chunks(logits: Tensor) -> list[slice]:
    rows = max(1, _ELEMENTS_PER_CHUNK // max(1, logits.shape[1]))
    return [slice(start, start + rows) for start in range(0, logits.shape[0], rows)]


def logprobs_and_entropy(
    logits: Tensor, targets: Tensor, *, temperature: float, vocab_size: int, group: ProcessGroup
) -> Tensor:
    """Return float32 [2, N]: log p(target) and the entropy in nats, of softmax(logits / temperature).

    ``logits`` [N, V / ranks] are this rank's columns; columns beyond ``vocab_size`` in the whole row are padding and
    get no probability. Every rank of ``group`` gets the same result.
    """
    return _LogprobsAndEntropy.apply(logits, targets, temperature, vocab_size, group)
