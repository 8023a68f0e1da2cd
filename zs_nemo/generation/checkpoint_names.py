"""Names and sizes of the tensors in safetensors files, read from the headers alone."""

import json
from pathlib import Path

from zs_nemo.weights.hf_folder import is_rotary_buffer

_HEADER_LENGTH_BYTES = 8


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in one safetensors file."""
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(_HEADER_LENGTH_BYTES), "little")
        header = json.loads(handle.read(length))
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def folder_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in a Hugging Face folder; raises ``ValueError`` when it has no safetensors."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"model folder {str(folder)!r} holds no *.safetensors file; convert its weights to safetensors"
        )
    return {name: shape for file in files for name, shape in tensor_shapes(file).items()}


def check_same_tensors(
    expected: dict[str, tuple[int, ...]],
    given: dict[str, tuple[int, ...]],
    *,
    source: str,
    optional: frozenset[str],
) -> None:
    """Raise ``ValueError``, naming ``source``, unless the given tensors are the expected ones and no others.

    ``optional`` ones and rotary frequencies, which an old folder may hold, may be there or not.
    """
    names_differ = {name for name in (set(given) ^ set(expected)) - optional if not is_rotary_buffer(name)}
    shapes_differ = {name for name in set(given) & set(expected) if given[name] != expected[name]}
    wrong = sorted(names_differ | shapes_differ)
    if wrong:
        raise ValueError(
            f"{source} does not fit the model: {len(wrong)} tensors are missing, unknown or of another shape, "
            f"such as {wrong[0]!r} (given {given.get(wrong[0])}, expected {expected.get(wrong[0])})"
        )
