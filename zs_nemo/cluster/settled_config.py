"""The configuration with everything settled that its file leaves to the machine it runs on."""

from zs_nemo.cluster.accelerator import uses_gpu
from zs_nemo.cluster.cpu_threads import usable_cores, with_settled_threads
from zs_nemo.cluster.native_precision import with_settled_precision
from zs_nemo.config.registry import Config


def settled(cfg: Config, *, use_gpu: bool | None = None) -> Config:
    """Settle ``policy.precision=auto`` and, on CPU, threads of 0.

    Once, where a command begins, so that every process of the run and its ``config.yaml`` agree. With ``use_gpu`` None
    the configuration decides on CPU or GPU, and ``ValueError`` says where it asks for a GPU that is not there.
    """
    if use_gpu is None:
        use_gpu = uses_gpu(cfg)
    cfg = with_settled_precision(cfg, use_gpu=use_gpu)
    return cfg if use_gpu else with_settled_threads(cfg, usable_cores())
