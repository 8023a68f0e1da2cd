"""Which numeric format this machine computes fast, for settings that leave the choice to it."""

import dataclasses
import logging
from pathlib import Path

from zs_nemo.config.policy import Precision
from zs_nemo.config.registry import Config

_LOGGER = logging.getLogger(__name__)
_NATIVE_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}
"""Names under which Linux lists bf16 arithmetic of x86-64 and Arm cores."""
_AMPERE = (8, 0)
"""The compute capability from which on GPUs have bf16, which vLLM asks for as well."""


def has_native_bf16(cpu_info: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether the CPU multiplies bf16 matrices itself.

    One that does not imitates it, at a fraction of its float32 speed: on AVX2 alone a core that makes 80 GFLOP/s in
    float32 makes 1 to 15 in bf16, the least in the backward pass. Unknown is taken as no.
    """
    try:
        lines = cpu_info.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return not _NATIVE_BF16.isdisjoint(features.split())


def gpus_have_bf16() -> bool:
    """Return whether all of this machine's GPUs compute in bf16, those before Ampere do not; true without any here."""
    import torch

    return all(torch.cuda.get_device_capability(index) >= _AMPERE for index in range(torch.cuda.device_count()))


def native_precision(use_gpu: bool) -> Precision:
    """Return bf16 for GPUs and CPUs that have it, else float32."""
    return Precision.bf16 if (gpus_have_bf16() if use_gpu else has_native_bf16()) else Precision.fp32


def with_settled_precision(cfg: Config, *, use_gpu: bool) -> Config:
    """Return the configuration with ``policy.precision=auto`` replaced by what the machine computes fast."""
    if cfg.policy.precision is not Precision.auto:
        return cfg
    precision = native_precision(use_gpu)
    if precision is Precision.fp32:
        if use_gpu:
            _LOGGER.warning(
                "policy.precision=auto: a GPU of this machine has no bf16 arithmetic, so the run is in float32, with "
                "twice the memory"
            )
        else:
            _LOGGER.warning(
                "policy.precision=auto: this CPU has no bf16 arithmetic, so the run is in float32, three to four times "
                "slower than on as many cores that have"
            )
    return dataclasses.replace(cfg, policy=dataclasses.replace(cfg.policy, precision=precision))
