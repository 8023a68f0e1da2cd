"""What data sheets promise of a GPU. What is reached of it, ``config.simulation`` assumes."""

from dataclasses import dataclass

from zs_nemo.config.simulation import GpuModel


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One kind of GPU."""

    flops: float
    """Peak FLOP/s of the tensor cores in bf16, without sparsity."""
    bytes_per_s: float
    """Peak bandwidth of its memory."""
    data_sheet: str


GPUS = {
    GpuModel.a100: Gpu(flops=312e12, bytes_per_s=2039e9, data_sheet="NVIDIA A100 80GB SXM data sheet"),
    GpuModel.h100: Gpu(flops=989e12, bytes_per_s=3350e9, data_sheet="NVIDIA H100 SXM data sheet, without sparsity"),
}
