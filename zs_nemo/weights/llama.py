"""The parameter map between Hugging Face's Llama and megatron-core's GPT model.

Pure tensor code: knows names, how tensors are fused, and how tensor parallelism cuts them. Imports no megatron, so
that layouts can be checked before any worker starts. Names are those of megatron-core's ``local`` layer spec; those of
the Transformer Engine spec, where a norm belongs to the linear layer behind it, are understood as well.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """What the map and the model need of a ``config.json``."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool
    """Whether the output projection is the embedding matrix."""
    norm_eps: float
    rope_theta: float
    rope_factor: float | None
    """Llama 3's rope scaling factor; None without scaling."""
    max_position_embeddings: int

    @classmethod
    def from_folder(cls, folder: Path) -> "LlamaConfig":
        """Read ``config.json``, as transformers 4 or 5 writes it. Raises ``ValueError`` for what is not a Llama."""
        raw = json.loads((folder / "config.json").read_text())
        _refuse_other_architectures(folder, raw)
        rope = raw.get("rope_parameters") or {**(raw.get("rope_scaling") or {}), "rope_theta": raw.get("rope_theta")}
        return cls(
            num_layers=raw["num_hidden_layers"],
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            num_heads=raw["num_attention_heads"],
            num_kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
            head_dim=raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"],
            vocab_size=raw["vocab_size"],
            tied=bool(raw.get("tie_word_embeddings", False)),
            norm_eps=raw["rms_norm_eps"],
            rope_theta=float(rope.get("rope_theta") or 10000.0),
            rope_factor=_rope_factor(folder, rope),
            max_position_embeddings=raw["max_position_embeddings"],
        )

    def check_layout(self, *, tensor_parallel: int, pipeline_parallel: int) -> None:
        """Raise ``ValueError`` when the model cannot be cut that way. Needs no worker."""
        counts = (self.num_heads, self.num_kv_heads, self.intermediate_size)
        if any(count % tensor_parallel for count in counts):
            fitting = [size for size in range(1, self.num_kv_heads + 1) if all(count % size == 0 for count in counts)]
            raise ValueError(
                f"policy.tensor_model_parallel_size={tensor_parallel} must divide the model's {self.num_heads} "
                f"attention heads, {self.num_kv_heads} key/value heads and {self.intermediate_size} feed-forward "
                f"columns; set it to one of {fitting}"
            )
        if self.num_layers % pipeline_parallel:
            fitting = [size for size in range(1, self.num_layers + 1) if self.num_layers % size == 0]
            raise ValueError(
                f"policy.pipeline_model_parallel_size={pipeline_parallel} must divide the model's "
                f"{self.num_layers} layers; set it to one of {fitting}"
            )

    def hf_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name and shape of every tensor of the Hugging Face folder."""
        hidden, feed_forward = self.hidden_size, self.intermediate_size
        query, key = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        for layer in range(self.num_layers):
            prefix = f"model.layers.{layer}"
            shapes |= {
                f"{prefix}.input_layernorm.weight": (hidden,),
                f"{prefix}.self_attn.q_proj.weight": (query, hidden),
                f"{prefix}.self_attn.k_proj.weight": (key, hidden),
                f"{prefix}.self_attn.v_proj.weight": (key, hidden),
                f"{prefix}.self_attn.o_proj.weight": (hidden, query),
                f"{prefix}.post_attention_layernorm.weight": (hidden,),
                f"{prefix}.mlp.gate_proj.weight": (feed_forward, hidden),
                f"{prefix}.mlp.up_proj.weight": (feed_forward, hidden),
                f"{prefix}.mlp.down_proj.weight": (hidden, feed_forward),
            }
        shapes["model.norm.weight"] = (hidden,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes


def _refuse_other_architectures(folder: Path, raw: dict[str, Any]) -> None:
    if raw.get("model_type") != "llama":
        raise ValueError(
            f"model folder {folder} has model_type={raw.get('model_type')!r} but the weight map knows 'llama' only; "
            "give a Llama model"
        )
    for key in ("attention_bias", "mlp_bias"):
        if raw.get(key):
            raise ValueError(f"model folder {folder} has {key}=true but the weight map has no biases; give another")
    if raw.get("hidden_act", "silu") != "silu":
        raise ValueError(f"model folder {folder} has hidden_act={raw['hidden_act']!r} but must have 'silu'")


def _rope_factor(folder: Path, rope: dict[str, Any]) -> float | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    # megatron-core has the other three numbers of Llama 3's rule built in.
    built_in = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    if kind != "llama3" or any(rope.get(key) != value for key, value in built_in.items()):
        raise ValueError(
            f"model folder {folder} has rope settings {rope} but only rope_type 'default', or 'llama3' with "
            f"{built_in}, are supported; give a model with one of these"
        )
    return float(rope["factor"])


class Cut(Enum):
    """How a megatron tensor is made of Hugging Face tensors, and how tensor parallelism cuts it."""

    whole = "one tensor, the same on every rank"
    vocabulary = "one tensor, cut by rows after padding to a multiple of the ranks"
    columns = "one tensor, cut by columns"
    qkv = "queries, keys and values, interleaved by key/value head and cut between heads"
    gate_up = "gate above up, each of them cut by rows"


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
            groups = [tensor.reshape(self.num_kv_heads, -1, tensor.shape[-1]) for tensor in tensors]
            fused = torch.cat(groups, dim=1).chunk(size)[rank]
            return fused.reshape(-1, fused.shape[-1])
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
        columns = whole.shape[-1]
        groups = whole.reshape(self.num_kv_heads, queries_per_group + 2, -1, columns)
        parts = groups.split([queries_per_group, 1, 1], dim=1)
        return [part.reshape(-1, columns) for part in parts]


_LAYER_RULES: dict[str, tuple[tuple[str, ...], Cut]] = {
    "input_layernorm.weight": (("input_layernorm.weight",), Cut.whole),
    "self_attention.linear_qkv.layer_norm_weight": (("input_layernorm.weight",), Cut.whole),
    "self_attention.linear_qkv.weight": (
        ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
        Cut.qkv,
    ),
    "self_attention.linear_proj.weight": (("self_attn.o_proj.weight",), Cut.columns),
    "pre_mlp_layernorm.weight": (("post_attention_layernorm.weight",), Cut.whole),
    "mlp.linear_fc1.layer_norm_weight": (("post_attention_layernorm.weight",), Cut.whole),
    "mlp.linear_fc1.weight": (("mlp.gate_proj.weight", "mlp.up_proj.weight"), Cut.gate_up),
    "mlp.linear_fc2.weight": (("mlp.down_proj.weight",), Cut.columns),
}
_LAYER_NAME = re.compile(r"decoder\.layers\.(\d+)\.(.+)")


def rule_for(config: LlamaConfig, name: str) -> ParameterRule:
    """Return the rule of a megatron parameter; ``name`` carries the layer's index in the whole model."""
    match = _LAYER_NAME.fullmatch(name)
    if match:
        suffixes, cut = _LAYER_RULES[match[2]]
        hf_names = tuple(f"model.layers.{match[1]}.{suffix}" for suffix in suffixes)
    elif name == "decoder.final_layernorm.weight":
        hf_names, cut = ("model.norm.weight",), Cut.whole
    elif name == "embedding.word_embeddings.weight" or (name == "output_layer.weight" and config.tied):
        hf_names, cut = ("model.embed_tokens.weight",), Cut.vocabulary
    else:
        assert name == "output_layer.weight", f"a parameter that the map does not know: {name}"
        hf_names, cut = ("lm_head.weight",), Cut.vocabulary
    return ParameterRule(
        hf_names=hf_names,
        cut=cut,
        num_kv_heads=config.num_kv_heads,
        num_heads=config.num_heads,
        vocab_size=config.vocab_size,
    )
