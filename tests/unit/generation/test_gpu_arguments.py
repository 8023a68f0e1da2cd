"""What a GPU engine is told of its memory; vLLM is a stand-in that knows the GPU's size."""

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from zs_nemo.generation.engine_setup import EngineSetup
from zs_nemo.generation.vllm_engine import _gpu_args

ALONE = EngineSetup(
    model_path="folder", dtype="bfloat16", use_gpu=True, gpu_memory_utilization=0.25, name="policy-engine-0"
)


@pytest.fixture(autouse=True)
def gpu_of_80_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    platform = SimpleNamespace(get_device_total_memory=lambda: 80 * 2**30)
    monkeypatch.setitem(sys.modules, "vllm", cast(Any, SimpleNamespace()))
    monkeypatch.setitem(sys.modules, "vllm.platforms", cast(Any, SimpleNamespace(current_platform=platform)))


def test_an_engine_alone_on_its_gpu_measures_what_it_has_for_keys_and_values() -> None:
    assert _gpu_args(ALONE)["kv_cache_memory_bytes"] is None


def test_an_engine_that_shares_its_gpu_is_told_what_it_has_for_keys_and_values() -> None:
    told = _gpu_args(replace(ALONE, besides_kv_gib=4.5))
    assert told["kv_cache_memory_bytes"] == pytest.approx(15.5 * 2**30)


@pytest.mark.parametrize(("size", "backend"), [(1, "uni"), (2, "mp")])
def test_the_workers_of_an_engine_are_its_own_processes_and_no_actors_of_its_placement_group(
    size: int, backend: str
) -> None:
    assert _gpu_args(replace(ALONE, tensor_model_parallel_size=size))["distributed_executor_backend"] == backend


def test_a_gpu_prefills_in_larger_pieces_where_it_is_not_shared() -> None:
    sizes = [_gpu_args(setup)["max_num_batched_tokens"] for setup in (ALONE, replace(ALONE, besides_kv_gib=4.5))]
    assert sizes[0] > sizes[1] >= ALONE.max_num_seqs


def test_a_share_that_leaves_nothing_for_keys_and_values_is_refused() -> None:
    with pytest.raises(ValueError, match=r"policy-engine-0: gpu_memory_utilization=0\.25 is 20\.0 GiB .* take 21\.0"):
        _gpu_args(replace(ALONE, besides_kv_gib=21.0))
