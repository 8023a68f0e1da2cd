"""What the roles of a run hold and do, worked out by hand."""

from pathlib import Path

import pytest

from zs_nemo.cluster.engine_pool import EngineUsage
from zs_nemo.cluster.placement import place_on_gpus
from zs_nemo.cluster.role_accounts import held_units, role_accounts
from zs_nemo.cluster.setups import Layout
from zs_nemo.generation.engine_setup import EngineSetup


def layout(*, ranks: int = 2, critics: int = 0, policy: tuple[int, ...] = (1,), simulator: tuple[int, ...] = (1,)):
    def engines(sizes: tuple[int, ...]) -> tuple[EngineSetup, ...]:
        return tuple(
            EngineSetup(model_path="folder", dtype="float32", tensor_model_parallel_size=size) for size in sizes
        )

    return Layout(
        num_ranks=ranks,
        num_critic_ranks=critics,
        policy_folder=Path("folder"),
        policy_engines=engines(policy),
        simulator_engines=engines(simulator),
        use_gpu=False,
        has_reference=True,
        has_critic=bool(critics),
    )


def test_processes_share_the_cores_that_there_are() -> None:
    assert held_units(layout(), None, threads=1, num_cores=2) == {"training": 1.0, "generation": 0.5, "simulator": 0.5}


def test_cores_that_no_thread_uses_are_not_held() -> None:
    units = held_units(layout(critics=1, simulator=()), None, threads=2, num_cores=64)
    assert units == {"training": 4.0, "critic": 2.0, "generation": 2.0}


def test_every_worker_of_an_engine_counts() -> None:
    units = held_units(layout(ranks=1, policy=(2,), simulator=(1, 1)), None, threads=1, num_cores=64)
    assert units == {"training": 1.0, "generation": 2.0, "simulator": 2.0}


def test_with_gpus_enough_every_role_holds_its_own() -> None:
    of = layout(ranks=4, critics=1, policy=(2, 1), simulator=(1,))
    units = held_units(of, place_on_gpus(9, 5, [2, 1, 1]), threads=1, num_cores=2)
    assert units == {"training": 4.0, "critic": 1.0, "generation": 3.0, "simulator": 1.0}


def test_a_gpu_that_roles_share_is_divided_and_counted_once() -> None:
    units = held_units(layout(), place_on_gpus(2, 2, [1, 1]), threads=1, num_cores=2)
    assert units == {"training": 1.0, "generation": 0.5, "simulator": 0.5}
    assert sum(units.values()) == 2


def accounts(units: dict[str, float], *, on_gpu: bool = True):
    stage_s = {"start": 10.0, "warm_start": 5.0, "rollout": 40.0, "reference": 8.0, "train": 12.0}
    stage_s |= {"values": 3.0, "train_critic": 4.0, "refit": 2.0}
    usage = {
        "generation": (EngineUsage(num_requests=9, prompt_tokens=90, completion_tokens=30, busy_s=60.0), 2),
        "simulator": (EngineUsage(num_requests=4, prompt_tokens=40, completion_tokens=20, busy_s=25.0), 1),
    }
    return role_accounts(units, on_gpu=on_gpu, wall_s=100.0, stage_s=stage_s, usage=usage)


def test_ranks_are_busy_in_their_stages_and_engines_while_they_are_asked() -> None:
    found = accounts({"training": 4.0, "generation": 2.0, "simulator": 1.0})
    # The critic's stages run on the policy's ranks when it has none of its own.
    assert found["training"] == {"held_gpu_s": 400.0, "busy_gpu_s": 4 * (5 + 8 + 12 + 3 + 4)}
    # Two engines were busy for 60 s together: each holds one of the two GPUs.
    assert found["generation"] == {
        "held_gpu_s": 200.0,
        "busy_gpu_s": 60.0,
        "requests": 9,
        "prompt_tokens": 90,
        "completion_tokens": 30,
    }
    assert found["simulator"]["busy_gpu_s"] == 25.0


def test_a_critic_of_its_own_has_its_own_stages() -> None:
    found = accounts({"training": 1.0, "critic": 2.0, "generation": 1.0})
    assert found["training"]["busy_gpu_s"] == 25.0
    assert found["critic"] == {"held_gpu_s": 200.0, "busy_gpu_s": 14.0}


def test_without_gpus_the_seconds_are_those_of_cores() -> None:
    found = accounts({"training": 1.0, "generation": 0.5}, on_gpu=False)
    assert found["training"]["held_core_s"] == 100.0
    assert found["generation"]["busy_core_s"] == pytest.approx(15.0)
    assert not any(name.endswith("_gpu_s") for counts in found.values() for name in counts)
