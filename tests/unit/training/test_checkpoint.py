import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from zs_nemo.training import checkpoint
from zs_nemo.training.checkpoint import _check_holds, _sharded_weights, _take_up, cut_short


class Layer(torch.nn.Linear):
    """As Transformer Engine's layers are, with something besides its weights in its state."""

    def get_extra_state(self) -> torch.Tensor:
        return torch.ones(1)

    def set_extra_state(self, state: torch.Tensor) -> None:
        raise AssertionError("there is none in a checkpoint")

    def sharded_state_dict(self, prefix: str = "", metadata: dict | None = None) -> dict:
        return {f"{prefix}{name}": value for name, value in self.state_dict().items()}


def test_what_layers_keep_beside_their_weights_is_neither_written_nor_asked_for(monkeypatch):
    # Of groups of ranks, of which there are none here.
    monkeypatch.setattr(checkpoint, "_metadata", dict)
    written = _sharded_weights(Layer(2, 3), prefix="module.")
    assert written.keys() == {"module.weight", "module.bias"}
    layer = Layer(2, 3)
    _take_up(layer, {name.removeprefix("module."): value for name, value in written.items()})
    assert torch.equal(layer.weight, written["module.weight"])


def test_a_weight_that_is_missing_or_unknown_is_an_error():
    for wrong in ({"weight": torch.zeros(3, 2)}, {**Layer(2, 3).state_dict(), "other": torch.zeros(1)}):
        wrong.pop("_extra_state", None)
        with pytest.raises(AssertionError, match="missing"):
            _take_up(Layer(2, 3), wrong)


EMBEDDING, NORM = "embedding.word_embeddings.weight", "decoder.final_layernorm.weight"
GATED = "decoder.layers.mlp.linear_fc1.weight"
HELD = {
    EMBEDDING: (68, 8),
    NORM: (8,),
    GATED: (2, 32, 8),
    f"optimizer.state.exp_avg.{NORM}": (8,),
    "decoder.layers.self_attention._extra_state": (1,),
}


def check_holds(monkeypatch, held: dict[str, tuple], *, prefix: str = "") -> None:
    """Check against a model with a vocabulary of 67 tokens, tied."""
    described = {f"{prefix}{name}": SimpleNamespace(global_shape=shape) for name, shape in held.items()}
    monkeypatch.setattr(checkpoint.dist_checkpointing, "load_tensors_metadata", lambda _folder: described)
    wanted = [
        SimpleNamespace(key=f"{prefix}{EMBEDDING}", global_shape=(67, 8), allow_shape_mismatch=True),
        SimpleNamespace(key=f"{prefix}{NORM}", global_shape=(8,), allow_shape_mismatch=False),
    ]
    # What megatron-core writes in two halves has a name in the checkpoint, and no shape beforehand.
    names = {f"{prefix}{GATED}", *(tensor.key for tensor in wanted)}
    _check_holds(Path("given"), names, wanted, prefix=prefix)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_that_the_model_has_no_place_for_are_not_left_out_in_silence(monkeypatch, prefix):
    check_holds(monkeypatch, HELD, prefix=prefix)
    for name in ("decoder.layers.self_attention.linear_qkv.bias", "output_layer.weight"):
        with pytest.raises(ValueError, match=rf"has a tensor '{prefix}{name}' \(of 1 besides\) .*no place for; give"):
            check_holds(monkeypatch, {**HELD, name: (8,)}, prefix=prefix)


def test_a_checkpoint_with_fewer_tokens_than_the_model_is_that_of_another(monkeypatch):
    check_holds(monkeypatch, {**HELD, EMBEDDING: (67, 8)})
    for shape in ((66, 8), (1, 8), (68, 16)):
        with pytest.raises(ValueError, match=rf"holds '{EMBEDDING}' with shape \({shape[0]}, .*makes it \(67, 8\)"):
            check_holds(monkeypatch, {**HELD, EMBEDDING: shape})


def test_a_checkpoint_of_others_that_is_cut_short_is_told_by_its_own_index(tmp_path):
    index = {MetadataIndex("a"): _StorageInfo("__0_0.distcp", 0, 60), MetadataIndex("b"): _StorageInfo("x", 60, 40)}
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Metadata({}, storage_data=index)))
    (tmp_path / "__0_0.distcp").write_bytes(b"." * 61)
    (tmp_path / "x").write_bytes(b"." * 100)
    torch.save({}, tmp_path / "common.pt")
    assert cut_short(tmp_path) == []
    (tmp_path / "x").write_bytes(b"." * 99)
    (tmp_path / "__0_0.distcp").unlink()
    (tmp_path / "common.pt").write_bytes(b".")
    shorter = [problem.removeprefix(f"{tmp_path}/") for problem in cut_short(tmp_path)]
    assert shorter == [
        "common.pt is missing or cut short",
        "__0_0.distcp has 0 bytes of 60 or more",
        "x has 99 bytes of 100 or more",
    ]
    (tmp_path / ".metadata").write_bytes((tmp_path / ".metadata").read_bytes()[:50])
    assert "/.metadata cannot be read" in cut_short(tmp_path)[0]
