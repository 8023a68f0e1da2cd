"""Llama and the models of its architecture: the decoder layer that the other families extend.

Names are those of megatron-core's ``local`` layer spec; those of the Transformer Engine spec, where a norm belongs to
the linear layer behind it, are understood as well.
"""

from zs_nemo.weights.family import Family
from zs_nemo.weights.parameter_map import Cut, LayerRule

LLAMA = Family(
    model_type="llama",
    must_be_false=("attention_bias", "mlp_bias"),
    layer_shapes={
        "input_layernorm.weight": ("hidden_size",),
        "self_attn.q_proj.weight": ("query_size", "hidden_size"),
        "self_attn.k_proj.weight": ("key_size", "hidden_size"),
        "self_attn.v_proj.weight": ("key_size", "hidden_size"),
        "self_attn.o_proj.weight": ("hidden_size", "query_size"),
        "post_attention_layernorm.weight": ("hidden_size",),
        "mlp.gate_proj.weight": ("intermediate_size", "hidden_size"),
        "mlp.up_proj.weight": ("intermediate_size", "hidden_size"),
        "mlp.down_proj.weight": ("hidden_size", "intermediate_size"),
    },
    layer_rules={
        "input_layernorm.weight": LayerRule(("input_layernorm.weight",), Cut.whole),
        "self_attention.linear_qkv.layer_norm_weight": LayerRule(("input_layernorm.weight",), Cut.whole),
        "self_attention.linear_qkv.weight": LayerRule(
            ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"), Cut.qkv
        ),
        "self_attention.linear_proj.weight": LayerRule(("self_attn.o_proj.weight",), Cut.columns),
        "pre_mlp_layernorm.weight": LayerRule(("post_attention_layernorm.weight",), Cut.whole),
        "mlp.linear_fc1.layer_norm_weight": LayerRule(("post_attention_layernorm.weight",), Cut.whole),
        "mlp.linear_fc1.weight": LayerRule(("mlp.gate_proj.weight", "mlp.up_proj.weight"), Cut.gate_up),
        "mlp.linear_fc2.weight": LayerRule(("mlp.down_proj.weight",), Cut.columns),
    },
)
