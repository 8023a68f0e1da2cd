"""What Hugging Face transformers computes for a training batch, one sequence at a time."""

from pathlib import Path

import torch
from torch import Tensor

from zs_nemo.types.batch import TrainBatch
from zs_nemo.types.loss import TokenLoss


def load(folder: Path, dtype: torch.dtype = torch.float32):
    """Return the model with eager attention, which shares no kernel with ours."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    # Transformers gives the embedding of the pad token no gradient; here it is the end-of-text token, which is trained.
    model.get_input_embeddings().padding_idx = None
    return model


def masked_logits(model, batch: TrainBatch) -> Tensor:
    """Return float32 [N, V]: the logits that predict the masked tokens, in the order of the batch."""
    rows, start = [], 0
    for length in batch.lengths.tolist():
        end = start + length
        logits = model(batch.token_ids[None, start:end]).logits[0].float()
        rows.append(logits[:-1][batch.loss_mask[start + 1 : end]])
        start = end
    return torch.cat(rows)


def masked_hidden_states(model, batch: TrainBatch) -> Tensor:
    """Return [N, H]: the last hidden states from which the masked tokens are predicted, in the order of the batch."""
    rows, start = [], 0
    for length in batch.lengths.tolist():
        end = start + length
        hidden = model.model(batch.token_ids[None, start:end]).last_hidden_state[0]
        rows.append(hidden[:-1][batch.loss_mask[start + 1 : end]])
        start = end
    return torch.cat(rows)


def logprobs_and_entropy(model, batch: TrainBatch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return log p of the masked tokens [N] and the entropies [N]."""
    log_p = (masked_logits(model, batch) / temperature).log_softmax(-1)
    targets = batch.token_ids[batch.loss_mask]
    return log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(1)


def gradients(model, batch: TrainBatch, loss: TokenLoss) -> dict[str, Tensor]:
    """Return the gradient of the normalised loss by autograd, under Hugging Face names."""
    model.zero_grad()
    total, _ = loss(torch.stack(logprobs_and_entropy(model, batch)), batch)
    (total / loss.normalizer(batch)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}
