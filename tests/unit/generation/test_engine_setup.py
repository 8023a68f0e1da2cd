from dataclasses import replace

from zs_nemo.generation.engine_setup import EngineSetup, engine_environment

SETUP = EngineSetup(model_path="folder", dtype="float32")


def test_an_engine_never_asks_the_network_nor_reports_usage() -> None:
    for setup in (SETUP, replace(SETUP, use_gpu=True)):
        environment = engine_environment(setup)
        assert environment["HF_HUB_OFFLINE"] == "1"
        assert environment["VLLM_NO_USAGE_STATS"] == "1"


def test_threads_are_set_for_the_cpu_alone() -> None:
    assert engine_environment(replace(SETUP, threads=3))["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS" not in engine_environment(replace(SETUP, use_gpu=True))
