from pathlib import Path

import pytest

from zs_nemo.cluster import native_precision
from zs_nemo.cluster.native_precision import has_native_bf16, with_settled_precision
from zs_nemo.config.policy import Precision
from zs_nemo.config.recipe import GrpoRecipeConfig


@pytest.fixture
def cfg() -> GrpoRecipeConfig:
    cfg = GrpoRecipeConfig()
    cfg.policy.precision = Precision.auto
    return cfg


@pytest.mark.parametrize(
    ("line", "native"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16 amx_tile", True),
        ("flags\t\t: fpu avx2 amx_bf16", True),
        ("Features\t: fp asimd i8mm bf16", True),
        # Without arithmetic of its own: imitated, however wide the vectors are.
        ("flags\t\t: fpu avx2 avx512f avx512bw avx512_vnni", False),
        ("flags\t\t: fpu avx2 fma", False),
        ("model name\t: bf16", False),
    ],
)
def test_bf16_counts_only_where_the_cpu_lists_arithmetic_for_it(tmp_path: Path, line: str, native: bool) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\n{line}\n\nprocessor\t: 1\n{line}\n")
    assert has_native_bf16(info) is native


def test_an_unknown_cpu_computes_in_float32(tmp_path: Path) -> None:
    assert not has_native_bf16(tmp_path / "nothing")


@pytest.mark.parametrize(("native", "expected"), [(True, Precision.bf16), (False, Precision.fp32)])
def test_auto_becomes_what_the_cpu_computes_fast(
    cfg: GrpoRecipeConfig, monkeypatch: pytest.MonkeyPatch, native: bool, expected: Precision
) -> None:
    monkeypatch.setattr(native_precision, "has_native_bf16", lambda: native)
    assert with_settled_precision(cfg, use_gpu=False).policy.precision is expected
    assert cfg.policy.precision is Precision.auto, "the configuration given is left alone"


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ([(9, 0)], Precision.bf16),
        ([(8, 0), (8, 6)], Precision.bf16),
        ([(8, 0), (7, 5)], Precision.fp32),
        # The head of a cluster need not have one.
        ([], Precision.bf16),
    ],
)
def test_on_gpus_auto_is_what_all_of_them_compute_whatever_the_cpu(
    cfg: GrpoRecipeConfig,
    monkeypatch: pytest.MonkeyPatch,
    capabilities: list[tuple[int, int]],
    expected: Precision,
) -> None:
    monkeypatch.setattr(native_precision, "has_native_bf16", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(capabilities))
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda index: capabilities[index])
    assert with_settled_precision(cfg, use_gpu=True).policy.precision is expected


def test_a_precision_that_is_named_stays(cfg: GrpoRecipeConfig) -> None:
    cfg.policy.precision = Precision.bf16
    assert with_settled_precision(cfg, use_gpu=False) is cfg
