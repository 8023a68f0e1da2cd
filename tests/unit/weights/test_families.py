"""Reading each family's ``config.json``, and the way of every tensor to megatron-core's layout and back."""

import json

import pytest
import torch

from tests.family_models import CONFIGS, LLAMA_3_2_1B, QWEN2_5_0_5B, QWEN3_0_6B
from zs_nemo.weights.architecture import Architecture
from zs_nemo.weights.families import read_architecture
from zs_nemo.weights.parameter_map import Cut

LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "vocab_size": 31,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "max_position_embeddings": 64,
}
QWEN2 = {**LLAMA, "model_type": "qwen2"}
QWEN3 = {**LLAMA, "model_type": "qwen3", "head_dim": 10}
LAYER_NAMES = (
    "input_layernorm.weight",
    "self_attention.linear_qkv.weight",
    "self_attention.linear_proj.weight",
    "pre_mlp_layernorm.weight",
    "mlp.linear_fc1.weight",
    "mlp.linear_fc2.weight",
)
OWN_NAMES = {
    "llama": (),
    "qwen2": ("self_attention.linear_qkv.bias",),
    "qwen3": ("self_attention.q_layernorm.weight", "self_attention.k_layernorm.weight"),
}


def read(tmp_path, raw, **changes) -> Architecture:
    (tmp_path / "config.json").write_text(json.dumps({**raw, **changes}))
    return read_architecture(tmp_path)


def megatron_names(architecture: Architecture) -> list[str]:
    of_layers = [
        f"decoder.layers.{layer}.{name}"
        for layer in range(architecture.num_layers)
        for name in (*LAYER_NAMES, *OWN_NAMES[architecture.family.model_type])
    ]
    ends = ["embedding.word_embeddings.weight", "decoder.final_layernorm.weight", "output_layer.weight"]
    return ends + of_layers


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("raw", [LLAMA, QWEN2, QWEN3], ids=lambda raw: raw["model_type"])
def test_every_tensor_goes_to_megatron_and_back_bit_for_bit(tmp_path, raw, tied, ranks):
    architecture = read(tmp_path, raw, tie_word_embeddings=tied)
    tensors = {name: torch.randn(shape) for name, shape in architecture.hf_shapes().items()}
    back = {}
    for name in megatron_names(architecture):
        rule = architecture.rule_for(name)
        shards = [rule.to_megatron([tensors[hf] for hf in rule.hf_names], rank, ranks) for rank in range(ranks)]
        back |= dict(zip(rule.hf_names, rule.to_hf(shards), strict=True))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_fused_queries_stand_before_the_key_and_value_of_their_group_in_weights_and_biases(tmp_path):
    """megatron-core's layout, group by group: its queries, its key, its value."""
    qwen = read(tmp_path, QWEN2)
    q = torch.cat([torch.full((4,), 10.0 + i) for i in range(6)])
    k = torch.cat([torch.full((4,), 20.0 + i) for i in range(3)])
    v = torch.cat([torch.full((4,), 30.0 + i) for i in range(3)])
    expected = [12.0] * 4 + [13.0] * 4 + [21.0] * 4 + [31.0] * 4
    bias = qwen.rule_for("decoder.layers.0.self_attention.linear_qkv.bias")
    assert bias.to_megatron([q, k, v], rank=1, size=3).tolist() == expected
    weight = qwen.rule_for("decoder.layers.0.self_attention.linear_qkv.weight")
    columns = [tensor[:, None].expand(-1, 24) for tensor in (q, k, v)]
    assert weight.to_megatron(columns, rank=1, size=3)[:, 5].tolist() == expected


def test_each_rank_holds_its_gate_above_its_up(tmp_path):
    rule = read(tmp_path, LLAMA).rule_for("decoder.layers.1.mlp.linear_fc1.weight")
    gate, up = torch.arange(36.0)[:, None].expand(36, 24), 100 + torch.arange(36.0)[:, None].expand(36, 24)
    assert rule.to_megatron([gate, up], 1, 3)[:, 0].tolist() == [*range(12, 24), *range(112, 124)]


def test_the_last_rank_gets_the_padding_of_a_vocabulary_that_does_not_divide(tmp_path):
    rule = read(tmp_path, LLAMA).rule_for("embedding.word_embeddings.weight")
    embedding = torch.arange(1.0, 32.0)[:, None].expand(31, 24)
    assert rule.to_megatron([embedding], 1, 2)[:, 0].tolist() == [*range(17, 32), 0.0]


def test_every_rank_has_the_norms_of_queries_and_keys_whole(tmp_path):
    qwen = read(tmp_path, QWEN3)
    for name in ("q", "k"):
        rule = qwen.rule_for(f"decoder.layers.1.self_attention.{name}_layernorm.weight")
        assert rule.hf_names == (f"model.layers.1.self_attn.{name}_norm.weight",)
        assert rule.cut is Cut.whole
        norm = torch.randn(10)
        assert all(torch.equal(rule.to_megatron([norm], rank, 3), norm) for rank in range(3))


@pytest.mark.parametrize("raw", [LLAMA, QWEN2, QWEN3], ids=lambda raw: raw["model_type"])
def test_names_of_the_transformer_engine_spec_mean_the_same_tensors(tmp_path, raw):
    architecture = read(tmp_path, raw)
    for theirs, ours in (
        ("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"),
        ("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"),
    ):
        layer = "decoder.layers.1"
        assert architecture.rule_for(f"{layer}.{theirs}") == architecture.rule_for(f"{layer}.{ours}")


def test_a_tied_output_layer_is_the_embedding(tmp_path):
    llama = read(tmp_path, LLAMA, tie_word_embeddings=True)
    rule = llama.rule_for("output_layer.weight")
    assert rule.hf_names == ("model.embed_tokens.weight",)
    assert rule.cut is Cut.vocabulary
    assert "lm_head.weight" not in llama.hf_shapes()


def test_the_published_configurations_are_read(tmp_path):
    llama, qwen2, qwen3 = (read(tmp_path, raw) for raw in (LLAMA_3_2_1B, QWEN2_5_0_5B, QWEN3_0_6B))
    assert [model.family.model_type for model in (llama, qwen2, qwen3)] == ["llama", "qwen2", "qwen3"]
    assert [model.tied for model in (llama, qwen2, qwen3)] == [True] * 3
    assert [model.norm_eps for model in (llama, qwen2, qwen3)] == [1e-5, 1e-6, 1e-6]
    assert [model.rope.theta for model in (llama, qwen2, qwen3)] == [5e5, 1e6, 1e6]
    assert [model.head_dim for model in (llama, qwen2, qwen3)] == [64, 64, 128]
    assert (llama.rope.scaling is not None, qwen2.rope.scaling, qwen3.rope.scaling) == (True, None, None)
    assert [model.family.has_qkv_bias for model in (llama, qwen2, qwen3)] == [False, True, False]
    assert [model.family.has_qk_norm for model in (llama, qwen2, qwen3)] == [False, False, True]
    # Published numbers of parameters, with a tied embedding counted once.
    counts = [sum(torch.Size(s).numel() for s in model.hf_shapes().values()) for model in (llama, qwen2, qwen3)]
    assert counts == [1_235_814_400, 494_032_768, 596_049_920]


def test_a_head_size_that_is_not_given_is_the_family_s_own(tmp_path):
    assert read(tmp_path, {**QWEN3, "head_dim": None}).head_dim == 128
    assert read(tmp_path, QWEN2).head_dim == 4


@pytest.mark.parametrize(
    ("raw", "changes", "message"),
    [
        (LLAMA, {"model_type": "gpt2"}, r"model_type='gpt2'; .*\['llama', 'qwen2', 'qwen3'\]"),
        (LLAMA, {"attention_bias": True}, "attention_bias=true"),
        (LLAMA, {"mlp_bias": True}, "mlp_bias=true"),
        (QWEN3, {"attention_bias": True}, "attention_bias=true"),
        (LLAMA, {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        (LLAMA, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope settings"),
        (LLAMA, {"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        (LLAMA, {"hidden_size": None}, "no hidden_size"),
        (QWEN2, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "sliding window"),
        (QWEN3, {"layer_types": ["full_attention", "sliding_attention"]}, "sliding window"),
    ],
)
def test_what_the_model_does_not_know_is_refused(tmp_path, raw, changes, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, raw, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
        {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
        {"layer_types": ["full_attention", "full_attention"]},
    ],
)
def test_a_sliding_window_that_no_layer_uses_is_no_obstacle(tmp_path, changes):
    assert read(tmp_path, QWEN2, **changes).num_layers == 2


def test_the_tiny_models_keep_what_the_published_ones_have(tmp_path):
    """The parity tests would say little about a shape in which nothing is odd."""
    for raw in CONFIGS.values():
        model = read(tmp_path, raw)
        assert model.vocab_size % 2 == 1
    assert {read(tmp_path, raw).num_layers for raw in CONFIGS.values()} == {2, 3}
    assert {read(tmp_path, raw).tied for raw in CONFIGS.values()} == {True, False}
