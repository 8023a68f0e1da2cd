import json

import pytest
import torch

from zs_nemo.weights.llama import Cut, LlamaConfig, rule_for

RAW = {
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


def config(tmp_path, **changes) -> LlamaConfig:
    (tmp_path / "config.json").write_text(json.dumps({**RAW, **changes}))
    return LlamaConfig.from_folder(tmp_path)


MEGATRON_NAMES = [
    "embedding.word_embeddings.weight",
    *(
        f"decoder.layers.{layer}.{name}"
        for layer in range(2)
        for name in (
            "input_layernorm.weight",
            "self_attention.linear_qkv.weight",
            "self_attention.linear_proj.weight",
            "pre_mlp_layernorm.weight",
            "mlp.linear_fc1.weight",
            "mlp.linear_fc2.weight",
        )
    ),
    "decoder.final_layernorm.weight",
    "output_layer.weight",
]


@pytest.mark.parametrize("ranks", [1, 3])
def test_every_tensor_goes_to_megatron_and_back_bit_for_bit(tmp_path, ranks):
    llama = config(tmp_path)
    tensors = {name: torch.randn(shape) for name, shape in llama.hf_shapes().items()}
    back = {}
    for name in MEGATRON_NAMES:
        rule = rule_for(llama, name)
        shards = [rule.to_megatron([tensors[hf] for hf in rule.hf_names], rank, ranks) for rank in range(ranks)]
        back |= dict(zip(rule.hf_names, rule.to_hf(shards), strict=True))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_fused_queries_stand_before_the_key_and_value_of_their_group(tmp_path):
    """megatron-core's layout, group by group: its queries, its key, its value."""
    llama = config(tmp_path)
    rule = rule_for(llama, "decoder.layers.0.self_attention.linear_qkv.weight")
    head = torch.arange(4.0).repeat(1)
    q = torch.cat([torch.full((4, 24), 10.0 + i) for i in range(6)])
    k = torch.cat([torch.full((4, 24), 20.0 + i) for i in range(3)])
    v = torch.cat([torch.full((4, 24), 30.0 + i) for i in range(3)])
    second = rule.to_megatron([q, k, v], rank=1, size=3)
    assert second[:: len(head), 0].tolist() == [12, 13, 21, 31]


def test_each_rank_holds_its_gate_above_its_up(tmp_path):
    rule = rule_for(config(tmp_path), "decoder.layers.1.mlp.linear_fc1.weight")
    gate, up = torch.arange(36.0)[:, None].expand(36, 24), 100 + torch.arange(36.0)[:, None].expand(36, 24)
    assert rule.to_megatron([gate, up], 1, 3)[:, 0].tolist() == [*range(12, 24), *range(112, 124)]


def test_names_of_the_transformer_engine_spec_mean_the_same_tensors(tmp_path):
    llama = config(tmp_path)
    for theirs, ours in (
        ("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"),
        ("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"),
    ):
        assert rule_for(llama, f"decoder.layers.1.{theirs}") == rule_for(llama, f"decoder.layers.1.{ours}")


def test_a_tied_output_layer_is_the_embedding(tmp_path):
    llama = config(tmp_path, tie_word_embeddings=True)
    rule = rule_for(llama, "output_layer.weight")
    assert rule.hf_names == ("model.embed_tokens.weight",)
    assert rule.cut is Cut.vocabulary
    assert "lm_head.weight" not in llama.hf_shapes()


def test_a_layout_that_does_not_fit_is_refused_with_key_rule_and_remedy(tmp_path):
    llama = config(tmp_path)
    llama.check_layout(tensor_parallel=3, pipeline_parallel=2)
    with pytest.raises(ValueError, match=r"policy\.tensor_model_parallel_size=2 must divide .* one of \[1, 3\]"):
        llama.check_layout(tensor_parallel=2, pipeline_parallel=1)
    with pytest.raises(ValueError, match=r"policy\.pipeline_model_parallel_size=3 must divide .* one of \[1, 2\]"):
        llama.check_layout(tensor_parallel=1, pipeline_parallel=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type='gpt2'"),
        ({"attention_bias": True}, "attention_bias=true"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope settings"),
    ],
)
def test_what_the_map_does_not_know_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **changes)


def test_rope_settings_are_read_as_transformers_4_and_5_write_them(tmp_path):
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    old = config(tmp_path, rope_scaling=scaling)
    new = config(tmp_path, rope_theta=None, rope_parameters={**scaling, "rope_theta": 5000.0})
    assert old == new
    assert (new.rope_theta, new.rope_factor) == (5000.0, 32.0)
    assert config(tmp_path).rope_factor is None
