"""Set up before any test module is imported: one thread per process, and a model small enough for a test."""

import os
from pathlib import Path

import pytest

# Read when torch and its OpenMP runtime are loaded, so before the first import of torch.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_configure(config: pytest.Config) -> None:
    """Keep torch to the one thread also where it was loaded before this file."""
    import torch

    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        # As the ranks and engines of a run on CPU have it: every process would import the compiler, and gain nothing.
        os.environ["TORCHDYNAMO_DISABLE"] = "1"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a random Llama with the real tokenizer; do not write into it."""
    from tests.tiny_model import build_tiny_model

    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
