"""Core attention over packed sequences for both of megatron-core's layer specs; runs on CPU and on any GPU."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from zs_nemo.training.context_parallel import RowSlice, gather_row
from zs_nemo.training.kernels import rotary
from zs_nemo.training.shared_prefixes import expand, take_first_uses


@dataclass
class PackedRow(PackedSeqParams):
    """megatron-core's description of a packed row, with what every layer's attention would otherwise compute again."""

    seqlens: list[int] | None = None
    cos: Tensor | None = None
    """[T, 1, d / 2]: of the rotary angles, which start anew in each sequence"""
    sin: Tensor | None = None
    expansion: Tensor | None = None
    """[E]: the sequences end to end as indices of tokens, where tokens are shared; see ``PackedTokens``"""
    first_uses: Tensor | None = None
    """[T]: the place in ``expansion`` from which a shared token's output is taken"""
    later_uses: Tensor | None = None
    """[E - T]: the other places in ``expansion``"""
    row_slice: RowSlice | None = None
    """Under context parallelism the part of the row that this rank has; ``cos`` and ``sin`` are of its tokens alone"""


_FLASH_DTYPES, _FLASH_HEAD_DIM = (torch.bfloat16, torch.float16), 256
"""What PyTorch's flash attention for packed sequences takes."""


class SegmentAttention(torch.nn.Module):
    """Rotary embedding, then causal attention of each sequence with itself; no mask is ever built.

    One call for all sequences where a GPU has flash attention for them, otherwise one by one.
    """

    def __init__(self, config: TransformerConfig, softmax_scale: float | None = None, **_placement: object) -> None:
        super().__init__()
        assert config.attention_dropout == 0.0, "attention dropout has no place in reinforcement learning"
        self._scale = softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        packed_seq_params: PackedRow,
        **_unused: object,
    ) -> Tensor:
        """Attend. ``query`` [T, heads, d], ``key`` and ``value`` [T, kv heads, d]; returns [T, heads * d]."""
        assert attention_mask is None, "packed sequences are causal; a mask would be ignored"
        row = packed_seq_params
        assert row.seqlens is not None and row.cos is not None and row.sin is not None
        query, key = rotary(query, row.cos, row.sin), rotary(key, row.cos, row.sin)
        if row.expansion is not None:
            assert row.first_uses is not None and row.later_uses is not None
            # Attention alone sees every sequence whole; it is a small part of the work.
            query, key, value = (expand(x, row.expansion, row.first_uses, row.later_uses) for x in (query, key, value))
        if row.row_slice is not None:
            both = gather_row(torch.cat([key, value], dim=1), row.row_slice)
            key, value = both.chunk(2, dim=1)
        if row.row_slice is None and _takes_packed(query):
            out = self._attend_packed(query, key, value, row)
        else:
            out = self._attend_one_by_one(query, key, value, row)
        return out if row.first_uses is None else take_first_uses(out, row.first_uses)

    def _attend_packed(self, query: Tensor, key: Tensor, value: Tensor, row: PackedRow) -> Tensor:
        out = varlen_attn(
            query,
            key,
            value,
            row.cu_seqlens_q,
            row.cu_seqlens_kv,
            row.max_seqlen_q,
            row.max_seqlen_kv,
            scale=self._scale,
            window_size=(-1, 0),
            enable_gqa=True,
        )
        assert isinstance(out, Tensor)
        return out.flatten(1)

    def _attend_one_by_one(self, query: Tensor, key: Tensor, value: Tensor, row: PackedRow) -> Tensor:
        group = query.shape[1] // key.shape[1]
        # The CPU's flash kernel takes no grouped queries; repeating the few key/value heads is cheaper than its
        # fallback, which builds the whole attention matrix.
        key, value = (x.repeat_interleave(group, dim=1) if group > 1 else x for x in (key, value))
        return torch.cat([self._attend(*segment) for segment in _segments(query, key, value, row)])

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend with the last queries of a sequence to all of its keys up to the last query's."""
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (query, key, value))
        if query.shape[0] == key.shape[0]:
            out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=self._scale)
        else:
            mask = causal_lower_right(query.shape[0], key.shape[0])
            out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self._scale)
        return out.squeeze(0).transpose(0, 1).flatten(1)


def _takes_packed(query: Tensor) -> bool:
    return query.is_cuda and query.dtype in _FLASH_DTYPES and query.shape[-1] <= _FLASH_HEAD_DIM


def _segments(query: Tensor, key: Tensor, value: Tensor, row: PackedRow) -> Iterator[tuple[Tensor, ...]]:
    """Yield neighbouring queries of one sequence, with the keys and values before and among them."""
    assert row.seqlens is not None
    if row.row_slice is None:
        yield from zip(*(x.split(row.seqlens) for x in (query, key, value)), strict=True)
        return
    spans = row.row_slice.spans(row.seqlens)
    queries = query.split([len(asking) for asking, _ in spans])
    for asking, (_, asked) in zip(queries, spans, strict=True):
        yield asking, key[asked.start : asked.stop], value[asked.start : asked.stop]
