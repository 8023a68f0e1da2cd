"""What a start waits for on a cluster that others use too, and what it makes of the machines that Ray chooses.

Ray is a stand-in: nothing ever becomes free, or everything is at once.
"""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.unit.cluster.test_role_accounts import layout
from zs_nemo.cluster import memory_plan
from zs_nemo.cluster.placement import Placement
from zs_nemo.cluster.roles import Role
from zs_nemo.cluster.system import System
from zs_nemo.config.experiment import TrainerConfig
from zs_nemo.config.policy import PolicyConfig
from zs_nemo.config.recipe import GrpoRecipeConfig
from zs_nemo.config.rollout import RefitTransport
from zs_nemo.generation.engine_setup import EngineSetup
from zs_nemo.observability.faults import FaultLog


class GetTimeoutError(Exception):
    """Ray's."""


class FullCluster:
    """The part of Ray that a start asks before its processes have begun."""

    exceptions = SimpleNamespace(GetTimeoutError=GetTimeoutError, RayError=Exception)

    def __init__(self) -> None:
        group = SimpleNamespace(ready=lambda: "the group")
        self.util = SimpleNamespace(placement_group=lambda *_, **__: group)

    def cluster_resources(self) -> dict[str, float]:
        return {"GPU": 8.0}

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"NodeID": f"id{index}", "NodeManagerHostname": f"node{index}", "Alive": True, "Resources": {"GPU": 2.0}}
            for index in range(4)
        ]

    def get(self, reference: object, timeout: float | None = None) -> None:
        if timeout is None:
            pytest.fail("this would wait for ever")
        raise GetTimeoutError("Get timed out: some object(s) not ready.")

    def wait(self, references: list[object], num_returns: int, timeout: float) -> tuple[list[object], list[object]]:
        return [], references


class WaitsForACore(Role):
    def submit(self, method: str, *arguments: Any, **options: Any) -> Any:
        return method


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    monkeypatch.setitem(sys.modules, "ray", cast(Any, FullCluster()))
    cfg = GrpoRecipeConfig()
    cfg.cluster.ray_address, cfg.cluster.startup_timeout_s = "10.0.0.1:20001", 7.0
    return System(cfg, replace(layout(), use_gpu=True), cast(Any, None), tmp_path, FaultLog())


def test_a_rank_that_never_begins_is_named_with_its_log_after_the_start_s_limit(system: System, tmp_path: Path) -> None:
    rank = WaitsForACore("policy-rank-0", None, tmp_path / "policy-rank-0.log")
    with pytest.raises(TimeoutError, match=r"address: no answer from policy-rank-0 within 7 s.*policy-rank-0\.log"):
        system._rendezvous(rank, 0)


def test_gpus_that_never_become_free_are_told_with_the_setting_and_the_remedy(system: System) -> None:
    told = r"4 GPUs did not become free .* cluster\.startup_timeout_s=7; end what holds them, raise it, or ask for"
    with pytest.raises(TimeoutError, match=told):
        system._placement()


def test_an_engine_that_no_machine_has_gpus_enough_for_is_refused_at_once(system: System) -> None:
    system._layout = replace(layout(simulator=(2,), ranks=2), use_gpu=True)
    with pytest.raises(TimeoutError):
        system._placement()
    system._layout = replace(layout(simulator=(4,), ranks=2), use_gpu=True)
    told = r"tensor_model_parallel_size=4 needs as many GPUs of one machine, but none has more than 2; lower"
    with pytest.raises(ValueError, match=told):
        system._placement()


def test_what_the_gpus_of_a_cluster_cannot_hold_is_refused_before_it_is_started(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(cfg: object, placed: object, gpus: tuple[int, float]) -> None:
        raise ValueError(f"does not fit on {gpus[0]} GPUs of {gpus[1] / 2**30:.0f} GiB")

    monkeypatch.setattr("zs_nemo.cluster.system.check_gpus", check)
    with pytest.raises(TimeoutError):
        system._placement()
    system._cfg.cluster.gpu_memory_gib = 79
    with pytest.raises(ValueError, match="does not fit on 8 GPUs of 79 GiB"):
        system._placement()
    monkeypatch.setattr("zs_nemo.cluster.system.local_gpus", lambda: (2, 40.0 * 2**30))
    with pytest.raises(ValueError, match="does not fit on 8 GPUs of 40 GiB"):
        system._placement()


class ScatteredCluster(FullCluster):
    """Two machines, over which the bundles lie in turn."""

    def __init__(self, num_machines: int) -> None:
        super().__init__()
        self.util.placement_group_table = lambda group: {
            "bundles_to_node_id": {index: f"id{index % num_machines}" for index in range(64)}
        }

    def get(self, reference: object, timeout: float | None = None) -> None:
        return None


def placed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, num_machines: int, **policy: Any) -> Placement:
    monkeypatch.setitem(sys.modules, "ray", cast(Any, ScatteredCluster(num_machines)))
    cfg = GrpoRecipeConfig(trainer=TrainerConfig(devices=4), policy=PolicyConfig(**policy))
    run = System(cfg, layout(ranks=4, simulator=(1, 1, 1)), cast(Any, None), tmp_path, FaultLog())
    run._layout = replace(run._layout, use_gpu=True)
    placement = run._placement()
    assert placement is not None
    return placement


def test_ranks_that_share_tensors_are_seated_on_one_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    placement = placed(monkeypatch, tmp_path, num_machines=2, tensor_model_parallel_size=4)
    assert len({bundle % 2 for bundle, _ in placement.ranks}) == 1


def test_tensor_parallelism_over_machines_is_refused_when_ray_has_chosen_them_unless_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = (
        r"policy\.tensor_model_parallel_size=4, but policy-rank-0 to policy-rank-3 would sit on several machines \(node"
    )
    with pytest.raises(ValueError, match=told):
        placed(monkeypatch, tmp_path, num_machines=4, tensor_model_parallel_size=4)
    asked = {"tensor_model_parallel_size": 4, "tensor_parallel_across_nodes": True}
    assert len(placed(monkeypatch, tmp_path, num_machines=4, **asked).ranks) == 4


class Started(Role):
    """Keeps what it is started with."""

    def submit(self, method: str, *arguments: Any, **options: Any) -> Any:
        assert method == "start"
        (self.setup,) = arguments[0].args
        return method


def setup_of_started_engine(system: System, monkeypatch: pytest.MonkeyPatch, *, gpu_share: float) -> EngineSetup:
    engine = replace(system._layout.simulator_engines[0], name="simulator-engine-0", use_gpu=True)
    system._layout = replace(system._layout, policy_engines=(), simulator_engines=(engine,))
    system._placed = Placement(bundles=({"GPU": 1.0, "CPU": 1.0},), ranks=(), engines=((0, gpu_share),))
    monkeypatch.setattr(system, "_resources", lambda place: {})
    monkeypatch.setattr(system, "_role", lambda name, *_: Started(name, cast(Any, None), Path()))
    monkeypatch.setattr(memory_plan, "engine_weight_bytes", lambda setup: 3 * 2**30)
    role, _ = system._begin_engine("simulator-engine-0")
    assert isinstance(role, Started)
    return role.setup


def test_an_engine_that_shares_its_gpu_does_not_measure_what_others_leave_of_it(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert setup_of_started_engine(system, monkeypatch, gpu_share=1.0).besides_kv_gib == 0.0
    # The weights, and the process by the plan.
    assert setup_of_started_engine(system, monkeypatch, gpu_share=0.5).besides_kv_gib == pytest.approx(3 + 2.5)


@pytest.mark.parametrize(
    ("transport", "moves"), [(RefitTransport.nccl, True), (RefitTransport.cuda_ipc, False)], ids=["nccl", "cuda_ipc"]
)
def test_an_engine_that_reads_its_weights_from_its_gpu_is_replaced_there_and_nowhere_else(
    system: System, monkeypatch: pytest.MonkeyPatch, transport: RefitTransport, moves: bool
) -> None:
    resources: list[dict[str, Any]] = []

    def role(name: str, actor: type, environment: dict[str, str], asked: dict[str, Any]) -> Started:
        resources.append(asked)
        return Started(name, cast(Any, None), Path())

    engine = replace(system._layout.policy_engines[0], name="policy-engine-0", use_gpu=True)
    system._layout = replace(system._layout, policy_engines=(engine,), simulator_engines=())
    system._placed = Placement(bundles=({"GPU": 1.0, "CPU": 1.0},), ranks=(), engines=((0, 1.0),))
    system._cfg.generation.refit_transport = transport
    monkeypatch.setattr("zs_nemo.cluster.system.elsewhere", lambda num_gpus, hosts: {"moved": True})
    monkeypatch.setattr(system, "_resources", lambda place: {"moved": False})
    monkeypatch.setattr(system, "_role", role)
    system._begin_engine("policy-engine-0", {"a bad machine"})
    assert [asked["moved"] for asked in resources] == [moves]
