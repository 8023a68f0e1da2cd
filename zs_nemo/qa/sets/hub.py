"""Fetches the files of a set from the Hugging Face hub into the hub's own cache."""

import os
from pathlib import Path

from zs_nemo.qa.sets.reference import FILE_SUFFIXES, SetReference

_SHARDS = "-*-of-*"
"""Between split and suffix in the names of the parts of a large split."""


def hub_files(reference: SetReference) -> list[Path]:
    """Return the files of one split, fetched on the first use; raise ``ValueError`` with the remedy if that fails.

    A split is a file of its name or the numbered parts of one, in the folder itself or in ``data``. Access to what is
    not public comes from the environment (HF_TOKEN); with HF_HUB_OFFLINE=1 only what has been fetched before is used.
    """
    try:
        from huggingface_hub import errors as hub
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ValueError(
            f"{reference.text!r} lies on the Hugging Face hub, whose client is not installed; run "
            "pip install huggingface_hub, or name a .jsonl or .parquet file that you have"
        ) from error
    asked = (
        f"{reference.text!r} (data set {reference.repository} on the Hugging Face hub, revision {reference.revision})"
    )
    patterns = _patterns(reference)
    try:
        snapshot = snapshot_download(
            reference.repository, repo_type="dataset", revision=reference.revision, allow_patterns=patterns
        )
    except hub.GatedRepoError as error:
        raise ValueError(
            f"{asked} asks for consent to its terms; give it on the data set's page, and set HF_TOKEN to your token"
        ) from error
    except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError, hub.HFValidationError) as error:
        raise ValueError(
            f"{asked} does not exist, or is private; correct the name or the revision, or set HF_TOKEN to your token"
        ) from error
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, hub.HTTPError) as error:  # type: ignore[attr-defined]
        raise ValueError(f"{asked} cannot be fetched: {_why(error)}; {_remedy(reference)}") from error
    except OSError as error:
        raise ValueError(
            f"{asked} cannot be written to the hub's cache ({error.strerror}); free space, or point HF_HOME elsewhere"
        ) from error
    files = sorted({path for pattern in patterns for path in Path(snapshot).glob(pattern)})
    if not files:
        raise ValueError(f"{asked} has none of the files {', '.join(patterns)}; {_remedy(reference)}")
    if len({path.suffix for path in files}) > 1:
        files = [path for path in files if path.suffix == ".parquet"]
    return files


def _patterns(reference: SetReference) -> list[str]:
    folder = f"{reference.folder}/" if reference.folder else ""
    return [
        f"{folder}{inner}{reference.split}{parts}{suffix}"
        for inner in ("", "data/")
        for parts in ("", _SHARDS)
        for suffix in FILE_SUFFIXES
    ]


def _why(error: Exception) -> str:
    # Neither addresses nor the library's own long text: what they may hold is not ours to print.
    if _is_offline():
        return "HF_HUB_OFFLINE is set, and it is not in the hub's cache"
    return f"the hub could not be reached ({type(error).__name__}), and it is not in the hub's cache"


def _remedy(reference: SetReference) -> str:
    online = "unset HF_HUB_OFFLINE on a machine with a network" if _is_offline() else "try again with a network"
    return (
        f"{online}, check the split {reference.split!r}, take a set that needs no hub (pyserini/nq:test), or name a "
        ".jsonl or .parquet file that you have"
    )


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "ON", "YES", "TRUE"}
