from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from zs_nemo.generation.checkpoint_names import check_same_tensors, folder_shapes, tensor_shapes

NONE: frozenset[str] = frozenset()


def write(path: Path, **shapes: tuple[int, ...]) -> Path:
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    return path


def test_shapes_are_read_from_the_headers_of_all_files(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", x=(2, 3))
    write(tmp_path / "b.safetensors", y=(5,))
    assert folder_shapes(tmp_path) == {"x": (2, 3), "y": (5,)}


def test_a_folder_without_safetensors_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no"):
        folder_shapes(tmp_path)


@pytest.mark.parametrize("given", [{"x": (2, 3)}, {"x": (3, 2), "y": (5,)}, {"x": (2, 3), "y": (5,), "z": (1,)}])
def test_a_missing_a_misshapen_and_an_unknown_tensor_are_refused(given: dict[str, tuple[int, ...]]) -> None:
    expected = {"x": (2, 3), "y": (5,)}
    with pytest.raises(ValueError, match="some file does not fit the model: 1 tensors"):
        check_same_tensors(expected, given, source="some file", optional=NONE)


def test_an_optional_tensor_may_be_there_or_not() -> None:
    shapes = ({"x": (2,), "head": (4,)}, {"x": (2,)})
    for expected in shapes:
        for given in shapes:
            check_same_tensors(expected, given, source="some file", optional=frozenset({"head"}))


def test_rotary_frequencies_of_an_old_folder_need_not_be_in_the_file(tmp_path: Path) -> None:
    expected = {"x": (2,), "model.layers.0.self_attn.rotary_emb.inv_freq": (4,)}
    given = tensor_shapes(write(tmp_path / "w.safetensors", x=(2,)))
    check_same_tensors(expected, given, source="some file", optional=NONE)
