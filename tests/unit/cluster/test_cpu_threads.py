import pytest

from tests.composed import composed_dataclass
from zs_nemo.cluster.cpu_threads import shared_threads, usable_cores, with_settled_threads
from zs_nemo.cluster.settled_config import settled
from zs_nemo.config.policy import Precision


def _threads(recipe: str, cores: int, *overrides: str) -> tuple[int, int]:
    cluster = with_settled_threads(composed_dataclass(recipe, *overrides), cores).cluster
    return cluster.threads_per_process, cluster.threads_of_lone_engine


@pytest.mark.parametrize(
    ("processes", "cores", "threads"), [([2, 3], 8, 2), ([2, 3], 2, 1), ([1], 8, 8), ([0, 0], 4, 4), ([4], 4, 1)]
)
def test_threads_never_add_up_to_more_than_the_cores(processes: list[int], cores: int, threads: int) -> None:
    assert shared_threads(processes, cores) == threads


@pytest.mark.parametrize(("cores", "expected"), [(1, (1, 1)), (2, (1, 2)), (8, (4, 8)), (9, (4, 9))])
def test_the_quickstart_uses_all_cores_of_the_machine(cores: int, expected: tuple[int, int]) -> None:
    assert _threads("grpo", cores) == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        # Two ranks, against two engines of the policy and one of the simulator.
        (["generation.num_engines=2"], (4, 6)),
        (["trainer.devices=6"], (2, 12)),
        (["search=bm25"], (6, 12)),
        # Two ranks train while two engines generate.
        (["rollout.max_staleness=1", "algorithm.importance.level=token"], (3, 4)),
        # What is named stays.
        (["cluster.threads_per_process=5"], (5, 12)),
        (["cluster.threads_per_process=5", "cluster.threads_of_lone_engine=5"], (5, 5)),
        (["cluster.threads_of_lone_engine=1"], (6, 1)),
    ],
)
def test_those_that_compute_at_the_same_time_share_twelve_cores(
    overrides: list[str], expected: tuple[int, int]
) -> None:
    assert _threads("grpo", 12, *overrides) == expected


def test_a_critic_on_ranks_of_its_own_has_its_share() -> None:
    assert _threads("ppo", 12, "critic.num_ranks=2", "search=bm25") == (3, 12)


def test_an_evaluation_has_no_ranks_and_a_simulator_is_trained_without_engines() -> None:
    assert _threads("evaluate", 8, "search=bm25")[0] == 8
    assert _threads("sft_simulator", 8)[0] == 4


def test_a_policy_that_servers_serve_takes_no_core_from_the_simulator() -> None:
    served = ["endpoint.addresses=[http://127.0.0.1:8000/v1]", "endpoint.served_model=policy"]
    assert _threads("evaluate", 8, "search=simulated")[0] == 4
    assert _threads("evaluate", 8, "search=simulated", *served)[0] == 8


def test_on_cpu_a_run_knows_its_threads_and_precision_before_it_starts() -> None:
    cfg = settled(composed_dataclass("grpo", "trainer.accelerator=cpu"))
    assert 1 <= cfg.cluster.threads_per_process <= cfg.cluster.threads_of_lone_engine <= usable_cores()
    assert cfg.policy.precision is not Precision.auto


def test_on_gpus_threads_are_left_alone() -> None:
    assert settled(composed_dataclass("grpo"), use_gpu=True).cluster.threads_per_process == 0
