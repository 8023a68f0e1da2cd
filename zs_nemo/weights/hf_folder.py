"""Hugging Face model folders on disk: tensors read one by one, safetensors files written one tensor at a time."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class HfTensors:
    """The tensors of a Hugging Face folder, read from its safetensors files when asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file_of = _tensor_files(folder)

    def names(self) -> set[str]:
        """Return the names of all tensors in the folder."""
        return set(self._file_of)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor that is there, from the headers of the files."""
        shapes: dict[str, tuple[int, ...]] = {}
        for file_name in sorted(set(self._file_of.values())):
            with _opened(self.folder / file_name) as file:
                # An index may list what its files do not hold.
                held = [name for name in file.keys() if self._file_of.get(name) == file_name]  # noqa: SIM118
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in held}
        return shapes

    def read(self, name: str) -> Tensor:
        """Load one tensor into CPU memory. Raises ``ValueError`` when the folder does not hold it."""
        if name not in self._file_of:
            raise ValueError(
                f"model folder {self.folder} has no tensor {name!r}, which its config.json calls for; "
                "give a folder whose weights and configuration belong together"
            )
        with _opened(self.folder / self._file_of[name]) as file:
            return file.get_tensor(name)


def _tensor_files(folder: Path) -> dict[str, str]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        file_of = _weight_map(index)
        if absent := sorted({name for name in file_of.values() if not (folder / name).is_file()}):
            raise ValueError(
                f"model folder {folder} lacks the files {absent} that {index.name} names; fetch the folder again"
            )
        return file_of
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"model folder {folder} holds no .safetensors file; convert the model with "
            "transformers' save_pretrained, which writes safetensors"
        )
    found: dict[str, str] = {}
    for path in files:
        with _opened(path) as file:
            found |= dict.fromkeys(file.keys(), path.name)
    return found


def _weight_map(index: Path) -> dict[str, str]:
    try:
        return dict(json.loads(index.read_text())["weight_map"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{index} is cut short or no index of safetensors files ({error}); fetch it again") from error


def _opened(path: Path) -> safe_open:
    """Open a safetensors file. Raises ``ValueError`` when it is none, or not whole."""
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(
            f"{path} is cut short or no safetensors file ({error}); fetch it again (what git-lfs has not fetched yet "
            "comes with git lfs pull)"
        ) from error


def is_rotary_buffer(name: str) -> bool:
    """Tell whether a tensor holds rotary frequencies: old folders repeat what their configuration says."""
    return name.endswith(".rotary_emb.inv_freq")


class SafetensorsWriter:
    """Writes one safetensors file whose tensors arrive one at a time, so that a model never lies in memory twice.

    The whole size is reserved at once: a full disk or shared memory raises ``OSError`` here, not in the middle. The
    file appears under its name only when the context ends without an error.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.part")
        self._dtype = dtype
        self._shapes = dict(shapes)
        self._missing = set(shapes)
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        self._start: dict[str, int] = {}
        position = 0
        for name, shape in shapes.items():
            end = position + torch.Size(shape).numel() * dtype.itemsize
            header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
            self._start[name], position = position, end
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)
        self._preamble = len(encoded).to_bytes(8, "little") + encoded
        self._size = len(self._preamble) + position

    def __enter__(self) -> "SafetensorsWriter":
        self._file = open(self._temporary, "wb")
        try:
            os.posix_fallocate(self._file.fileno(), 0, self._size)
        except OSError:
            self._file.close()
            self._temporary.unlink()
            raise
        self._file.write(self._preamble)
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one of the announced tensors, in any order, converted to the file's type."""
        assert tuple(tensor.shape) == self._shapes[name], f"{name}: {tuple(tensor.shape)} != {self._shapes[name]}"
        data = tensor.detach().to(device="cpu", dtype=self._dtype).contiguous().view(torch.uint8)
        self._file.seek(len(self._preamble) + self._start[name])
        data.reshape(-1).numpy().tofile(self._file)
        self._missing.remove(name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is not None:
            self._temporary.unlink()
            return
        assert not self._missing, f"tensors that were announced but not written: {sorted(self._missing)}"
        os.replace(self._temporary, self._path)


def copy_all_but_weights(source: Path, target: Path, *, dtype: torch.dtype) -> None:
    """Copy configuration and tokenizer files, with the configuration's ``dtype`` set to that of the new weights."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        is_weights = ".safetensors" in path.name or path.suffix in (".bin", ".gguf", ".pt", ".pth")
        if path.is_file() and not is_weights and path.name != "config.json":
            shutil.copyfile(path, target / path.name)
    config = json.loads((source / "config.json").read_text())
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
