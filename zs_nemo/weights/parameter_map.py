"""How one megatron-core parameter is made of Hugging Face tensors and cut over ranks, in both directions.

Pure tensor code, one parameter at a time: no more of a model than that ever stands in memory twice. Which parameters
there are is said by the families. Imports no megatron, so that layouts can be checked before any worker starts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor


class Cut(Enum):
    """How a megatron tensor is made of Hugging Face tensors, and how tensor parallelism cuts it."""

    whole = "one tensor, the same on every rank"
    vocabulary = "one tensor, cut by rows after padding to a multiple of the ranks"
    columns = "one tensor, cut by columns"
    qkv = "queries, keys and values (weights or biases), interleaved by key/value head and cut between heads"
    gate_up = "gate above up, each of them cut by rows"


class LayerRule(NamedTuple):
    """What a parameter of a layer is made of."""

    hf_names: tuple[str, ...]
    """Without the prefix that names the layer."""
    cut: Cut


@dataclass(frozen=True, kw_only=True)
class ParameterRule:
    """How one megatron parameter relates to Hugging Face tensors."""

    hf_names: tuple[str, ...]
    cut: Cut
    num_kv_heads: int
    num_heads: int
    vocab_size: int

    def to_megatron(self, tensors: Sequence[Tensor], rank: int, size: int) -> Tensor:
        """Return the part of tensor-parallel rank ``rank`` of ``size``."""
        if self.cut is Cut.whole:
            return tensors[0]
        if self.cut is Cut.columns:
            return tensors[0].chunk(size, dim=1)[rank]
        if self.cut is Cut.gate_up:
            return torch.cat([tensor.chunk(size)[rank] for tensor in tensors])
        if self.cut is Cut.qkv:
            groups = [tensor.unflatten(0, (self.num_kv_heads, -1)).chunk(size)[rank] for tensor in tensors]
            return torch.cat(groups, dim=1).flatten(0, 1)
        padding = -self.vocab_size % size
        return torch.nn.functional.pad(tensors[0], (0, 0, 0, padding)).chunk(size)[rank]

    def to_hf(self, shards: Sequence[Tensor]) -> list[Tensor]:
        """Return the Hugging Face tensors from the parts of all tensor-parallel ranks, in order of rank."""
        if self.cut is Cut.whole:
            return [shards[0]]
        if self.cut is Cut.columns:
            return [torch.cat(list(shards), dim=1)]
        if self.cut is Cut.gate_up:
            halves = [shard.chunk(2) for shard in shards]
            return [torch.cat([half[i] for half in halves]) for i in range(2)]
        whole = torch.cat(list(shards))
        if self.cut is Cut.vocabulary:
            return [whole[: self.vocab_size]]
        queries_per_group = self.num_heads // self.num_kv_heads
        groups = whole.unflatten(0, (self.num_kv_heads, queries_per_group + 2, -1))
        return [part.flatten(0, 2) for part in groups.split([queries_per_group, 1, 1], dim=1)]
