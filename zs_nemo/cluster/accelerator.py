"""CPU or GPU: decided once for a run, by ``trainer.accelerator`` and what PyTorch sees."""

from zs_nemo.config.experiment import Accelerator
from zs_nemo.config.recipe import RecipeConfig


def uses_gpu(cfg: RecipeConfig) -> bool:
    """Return whether the run is on GPUs. Raises ``ValueError`` where one is asked for and none is there."""
    if cfg.trainer.accelerator is Accelerator.cpu:
        return False
    import torch

    # The driver of a cluster may sit on a machine without a GPU; then only accelerator=gpu can ask for them.
    if cfg.trainer.accelerator is Accelerator.gpu and not cfg.cluster.ray_address and not torch.cuda.is_available():
        raise ValueError(
            "trainer.accelerator=gpu, but PyTorch sees no GPU here; set trainer.accelerator=cpu, "
            "or install the CUDA requirements (requirements/) on a machine with an NVIDIA driver"
        )
    return cfg.trainer.accelerator is Accelerator.gpu or torch.cuda.is_available()
