"""Small batches for the algorithms, with documents in the middle of sequences."""

from collections.abc import Sequence

import numpy as np
import torch

from zs_nemo.types.batch import TrainBatch

PROMPT, POLICY, DOCUMENT = "p", "s", "d"


def batch_of(
    layouts: Sequence[str], *, groups: Sequence[int] | None = None, **per_token: Sequence[float]
) -> TrainBatch:
    """Return a batch of sequences such as ``"psddss"``: a token each of prompt and policy, two documents', two policy.

    ``per_token`` tensors are given on policy tokens alone, all sequences end to end; off the mask they are 0.
    """
    text = "".join(layouts)
    mask = torch.tensor([role == POLICY for role in text])
    fields = {}
    for name, values in per_token.items():
        fields[name] = torch.zeros(len(text))
        fields[name][mask] = torch.as_tensor(values, dtype=torch.float32)
    return TrainBatch(
        token_ids=torch.arange(len(text)),
        lengths=torch.tensor([len(layout) for layout in layouts]),
        group_ids=torch.tensor(groups if groups is not None else range(len(layouts))),
        loss_mask=mask,
        **{"generation_logprobs": torch.zeros(len(text)), **fields},
    )


def rewarded(layouts: Sequence[str], rewards: Sequence[float], groups: Sequence[int] | None = None) -> TrainBatch:
    """Return a batch whose rewards stand on the last policy token of each sequence."""
    on_tokens: list[float] = []
    for layout, reward in zip(layouts, rewards, strict=True):
        count = layout.count(POLICY)
        on_tokens += [0.0] * (count - 1) + [reward] * (count > 0)
    return batch_of(layouts, groups=groups, rewards=on_tokens)


def by_sequence(batch: TrainBatch, values: torch.Tensor) -> list[np.ndarray]:
    """Return the values of the policy tokens of each sequence."""
    parts = zip(values.split(batch.lengths.tolist()), batch.loss_mask.split(batch.lengths.tolist()), strict=True)
    return [part[mask].double().numpy() for part, mask in parts]
