import pytest
import torch

from zs_nemo.training import checkpoint
from zs_nemo.training.checkpoint import _sharded_weights, _take_up


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
