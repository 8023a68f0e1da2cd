"""Qwen3, the dense models: Llama's layer with a norm over each head of the queries and of the keys."""

from zs_nemo.weights.family import Family
from zs_nemo.weights.llama import LLAMA
from zs_nemo.weights.parameter_map import Cut, LayerRule

QWEN3 = Family(
    model_type="qwen3",
    must_be_false=("attention_bias",),
    default_head_dim=128,
    layer_shapes={
        **LLAMA.layer_shapes,
        "self_attn.q_norm.weight": ("head_dim",),
        "self_attn.k_norm.weight": ("head_dim",),
    },
    layer_rules={
        **LLAMA.layer_rules,
        # One norm for all heads: every tensor-parallel rank has it whole, and sees the gradients of its own heads only.
        "self_attention.q_layernorm.weight": LayerRule(("self_attn.q_norm.weight",), Cut.whole),
        "self_attention.k_layernorm.weight": LayerRule(("self_attn.k_norm.weight",), Cut.whole),
    },
)
