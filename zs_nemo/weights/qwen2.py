"""Qwen2 and Qwen2.5: Llama's layer with biases on queries, keys and values, whatever ``config.json`` says."""

from zs_nemo.weights.family import Family
from zs_nemo.weights.llama import LLAMA
from zs_nemo.weights.parameter_map import Cut, LayerRule

QWEN2 = Family(
    model_type="qwen2",
    layer_shapes={
        **LLAMA.layer_shapes,
        "self_attn.q_proj.bias": ("query_size",),
        "self_attn.k_proj.bias": ("key_size",),
        "self_attn.v_proj.bias": ("key_size",),
    },
    layer_rules={
        **LLAMA.layer_rules,
        "self_attention.linear_qkv.bias": LayerRule(
            ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"), Cut.qkv
        ),
    },
)
