"""Layouts and folders that do not fit a model are refused, with what would."""

import json

import pytest
import torch
from safetensors.torch import save_file

from zs_nemo.weights.architecture import Architecture
from zs_nemo.weights.families import read_architecture
from zs_nemo.weights.hf_folder import HfTensors

RAW = {
    "model_type": "qwen2",
    "num_hidden_layers": 5,
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "vocab_size": 31,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
}


def architecture(tmp_path, **changes) -> Architecture:
    (tmp_path / "config.json").write_text(json.dumps({**RAW, **changes}))
    return read_architecture(tmp_path)


def tensors(model: Architecture) -> dict[str, torch.Tensor]:
    return {name: torch.randn(shape) for name, shape in model.hf_shapes().items()}


def check(tmp_path, model: Architecture, held: dict[str, torch.Tensor]) -> None:
    save_file(held, tmp_path / "model.safetensors")
    model.check_tensors(HfTensors(tmp_path))


def test_a_tensor_parallel_size_that_does_not_divide_the_heads_is_refused_with_those_that_do(tmp_path):
    model = architecture(tmp_path)
    model.check_layout(tensor_parallel=3, pipeline_parallel=5)
    with pytest.raises(ValueError, match=r"policy\.tensor_model_parallel_size=2 must divide .* one of \[1, 3\]"):
        model.check_layout(tensor_parallel=2, pipeline_parallel=1)


@pytest.mark.parametrize(
    ("layers", "stages", "first", "last", "fits"),
    [
        (5, 2, 3, None, True),
        (5, 2, None, 1, True),
        (5, 2, 3, 2, True),
        (5, 2, 3, 1, False),
        (5, 2, 5, None, False),
        (5, 3, 1, None, True),
        (5, 3, 2, None, False),
        (5, 3, 1, 1, True),
        (5, 4, 1, 2, True),
        (5, 4, 2, 2, False),
        (5, 4, 3, 2, False),
    ],
)
def test_the_stages_without_a_number_must_share_the_rest_evenly(tmp_path, layers, stages, first, last, fits):
    model = architecture(tmp_path, num_hidden_layers=layers)

    def check_stages():
        model.check_layout(
            tensor_parallel=1, pipeline_parallel=stages, layers_in_first_stage=first, layers_in_last_stage=last
        )

    if fits:
        check_stages()
    else:
        with pytest.raises(ValueError, match=rf"num_layers_in_first_pipeline_stage={first} and .*=\d+ and .*=\d+, or"):
            check_stages()


@pytest.mark.parametrize(
    ("layers", "stages", "first", "last"), [(3, 2, 2, 1), (5, 4, 2, 1), (28, 8, 2, 2), (28, 3, 9, 9), (36, 16, 4, 4)]
)
def test_the_remedy_for_an_uneven_number_of_layers_is_a_layout_that_fits(tmp_path, layers, stages, first, last):
    model = architecture(tmp_path, num_hidden_layers=layers)
    remedy = rf"set policy\.num_layers_in_first_pipeline_stage={first} and policy\.num_layers_in_last_pipeline_stage="
    with pytest.raises(ValueError, match=rf"size={stages} must divide .*{remedy}{last}, or .* one of \[1, "):
        model.check_layout(tensor_parallel=1, pipeline_parallel=stages)
    model.check_layout(
        tensor_parallel=1, pipeline_parallel=stages, layers_in_first_stage=first, layers_in_last_stage=last
    )


def test_more_stages_than_layers_and_needless_numbers_are_told_apart(tmp_path):
    model = architecture(tmp_path, num_hidden_layers=4)
    with pytest.raises(ValueError, match=r"the model's 4 layers; set policy\.pipeline_model_parallel_size to one of"):
        model.check_layout(tensor_parallel=1, pipeline_parallel=5)
    with pytest.raises(ValueError, match="leave both unset, since the stages can share the layers evenly"):
        model.check_layout(tensor_parallel=1, pipeline_parallel=2, layers_in_first_stage=1, layers_in_last_stage=2)


def test_a_folder_that_fits_is_let_pass(tmp_path):
    model = architecture(tmp_path)
    check(tmp_path, model, tensors(model))


def test_missing_extra_and_misshapen_tensors_are_named(tmp_path):
    model = architecture(tmp_path)
    held = tensors(model)
    del held["model.layers.3.self_attn.k_proj.bias"]
    held["model.layers.0.self_attn.q_norm.weight"] = torch.ones(4)
    held["model.norm.weight"] = torch.ones(23)
    with pytest.raises(ValueError) as caught:
        check(tmp_path, model, held)
    for part in (
        str(tmp_path),
        "lacks model.layers.3.self_attn.k_proj.bias",
        "has besides model.layers.0.self_attn.q_norm.weight",
        "has model.norm.weight with shape (23,) in place of (24,)",
        "give a folder whose weights and configuration belong together",
    ):
        assert part in str(caught.value)


def test_of_many_names_some_are_shown_and_all_are_counted(tmp_path):
    with pytest.raises(ValueError, match=r"lacks lm_head\.weight, .* and 52 more"):
        check(tmp_path, architecture(tmp_path), {"model.norm.weight": torch.ones(24)})


def test_rotary_buffers_and_a_repeated_embedding_are_let_pass(tmp_path):
    model = architecture(tmp_path, tie_word_embeddings=True)
    held = tensors(model)
    held["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    held["lm_head.weight"] = held["model.embed_tokens.weight"].clone()
    check(tmp_path, model, held)
    held["lm_head.weight"][3, 4] += 1
    with pytest.raises(ValueError, match=r"tie_word_embeddings=true, but its lm_head\.weight differs"):
        check(tmp_path, model, held)


@pytest.mark.parametrize("text", ["", '{"model_type": "qwen2", "hidden', "[1]"])
def test_a_configuration_that_is_cut_short_is_named_with_its_folder(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.json of model folder {tmp_path} is cut short .*fetch it again"):
        read_architecture(tmp_path)
