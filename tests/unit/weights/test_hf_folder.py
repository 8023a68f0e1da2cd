import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from zs_nemo.weights.hf_folder import HfTensors, SafetensorsWriter, copy_all_but_weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_streamed_file_reads_back_with_safetensors_in_whatever_order_it_was_written(tmp_path, dtype):
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(7), "c": torch.randn(2, 2).t()}
    path = tmp_path / "model.safetensors"
    with SafetensorsWriter(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, dtype) as writer:
        for name in ("b", "c", "a"):
            writer.write(name, tensors[name])
    read = load_file(path)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name].to(dtype)) for name in tensors)


def test_a_write_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(KeyError), SafetensorsWriter(tmp_path / "x.safetensors", {"a": (2,)}, torch.float32) as writer:
        writer.write("a", torch.zeros(2))
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path):
    with pytest.raises(OSError), SafetensorsWriter(tmp_path / "x", {"a": (2**50,)}, torch.float32):
        pass
    assert list(tmp_path.iterdir()) == []


def test_tensors_are_found_in_one_file_in_several_and_by_an_index(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    save_file({"b": torch.zeros(1)}, tmp_path / "two.safetensors")
    assert HfTensors(tmp_path).names() == {"a", "b"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"b": "two.safetensors"}}))
    assert HfTensors(tmp_path).names() == {"b"}
    assert HfTensors(tmp_path).read("b").tolist() == [0.0]


def test_shapes_are_those_of_the_tensors_that_are_there(tmp_path):
    save_file({"a": torch.ones(1, 3), "other": torch.ones(1)}, tmp_path / "one.safetensors")
    save_file({"b": torch.zeros(2)}, tmp_path / "two.safetensors")
    weight_map = {"a": "one.safetensors", "b": "two.safetensors", "promised": "two.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert HfTensors(tmp_path).shapes() == {"a": (1, 3), "b": (2,)}
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks the files \['two\.safetensors'\] .*fetch the folder again"):
        HfTensors(tmp_path)


def test_a_missing_tensor_and_a_folder_without_weights_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no \.safetensors file"):
        HfTensors(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    with pytest.raises(ValueError, match="no tensor 'x'"):
        HfTensors(tmp_path).read("x")


def test_everything_but_the_weights_is_copied_and_the_new_type_is_noted(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "config.json").write_text(json.dumps({"model_type": "llama", "torch_dtype": "float32"}))
    (source / "tokenizer.json").write_text("{}")
    for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"):
        (source / name).write_text("x")
    copy_all_but_weights(source, target, dtype=torch.bfloat16)
    assert {path.name for path in target.iterdir()} == {"config.json", "tokenizer.json"}
    assert json.loads((target / "config.json").read_text()) == {"model_type": "llama", "dtype": "bfloat16"}


@pytest.mark.parametrize("length", [0, 5, 60, -1], ids=["empty", "in the length", "in the header", "in the values"])
def test_a_file_that_is_cut_short_is_named_before_anything_is_read(tmp_path, length):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(4)}, path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"model\.safetensors is cut short or no safetensors file .*fetch it again"):
        HfTensors(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": path.name}}))
    with pytest.raises(ValueError, match=r"model\.safetensors is cut short"):
        HfTensors(tmp_path).shapes()


@pytest.mark.parametrize("text", ["", '{"weight_map": {"a"', '{"metadata": {}}', "[1]"])
def test_an_index_that_is_none_is_named(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json is cut short or no index"):
        HfTensors(tmp_path)
