from pathlib import Path
from typing import Any

import pytest

from zs_nemo.cluster.processes import Place
from zs_nemo.cluster.recovery import EngineRestarts, hosts_to_avoid, node_with_room, nodes_to_avoid, record_death
from zs_nemo.cluster.roles import Role, RoleError
from zs_nemo.config.faults import FaultConfig
from zs_nemo.observability.faults import FaultKind, FaultLog


def death(host: str, name: str = "policy-engine-0") -> RoleError:
    error = RoleError(f"{name} failed in generate: its process died\nlog: somewhere")
    error.role, error.died = Role(name, None, Path("log")), True
    error.role.place = Place(node_id="n", host=host, processes=())
    return error


def node(name: str, gpus: float = 8.0, *, alive: bool = True) -> dict[str, Any]:
    return {"NodeID": name * 3, "NodeManagerHostname": name, "Alive": alive, "Resources": {"GPU": gpus, "CPU": 32.0}}


def test_engines_are_replaced_within_the_budget_and_every_death_is_recorded() -> None:
    faults = FaultLog()
    restarts = EngineRestarts(lambda *_: pytest.fail(), FaultConfig(max_engine_restarts=2), faults, startup_timeout_s=1)
    restarts.claim(death("a"))
    restarts.claim(death("b", "simulator-engine-1"))
    with pytest.raises(RoleError, match=r"its process died(?s:.*)faults\.max_engine_restarts=2") as raised:
        restarts.claim(death("a"))
    assert raised.value.role is not None and raised.value.role.name == "policy-engine-0"
    assert [(row["role"], row["host"]) for row in faults.rows] == [
        ("policy-engine-0", "a"),
        ("simulator-engine-1", "b"),
    ]
    assert faults.metrics() == {"faults/engine_lost_total": 2.0}


def test_a_machine_on_which_processes_keep_dying_is_named_once_and_avoided() -> None:
    said: list[str] = []
    faults, settings = FaultLog(), FaultConfig(max_deaths_per_node=2)
    faults.listen(said.append)
    for host in ("a", "b", "a"):
        assert hosts_to_avoid(faults, settings) == set()
        record_death(FaultKind.engine_lost, death(host), settings, faults)
    record_death(FaultKind.ranks_lost, death("a"), settings, faults)
    assert hosts_to_avoid(faults, settings) == {"a"}
    assert sum("2 processes of the run have died on a" in line for line in said) == 1
    assert hosts_to_avoid(faults, FaultConfig(max_deaths_per_node=0)) == set()
    later = FaultLog(list(faults.rows))
    assert hosts_to_avoid(later, settings) == {"a"}, "a resumed run knows, too"


def test_a_bad_machine_is_left_out_only_where_the_others_have_what_is_needed() -> None:
    nodes = [node("a"), node("b"), node("c", alive=False)]
    assert nodes_to_avoid(nodes, {"a"}, {"GPU": 8}) == ["aaa"]
    assert nodes_to_avoid(nodes, {"a"}, {"GPU": 9}) == []
    assert nodes_to_avoid(nodes, {"z"}, {"GPU": 8}) == []


def test_a_replacement_goes_to_a_good_machine_that_has_room() -> None:
    nodes = [node("a"), node("b"), node("c"), node("d", alive=False)]
    free = {"aaa": {"GPU": 8.0, "CPU": 9.0}, "bbb": {"GPU": 0.5, "CPU": 9.0}, "ccc": {"GPU": 1.0, "CPU": 1.0}}
    assert node_with_room(nodes, free, {"a"}, {"CPU": 1.0, "GPU": 1.0}) == "ccc"
    assert node_with_room(nodes, free, {"a"}, {"CPU": 1.0, "GPU": 2.0}) is None
