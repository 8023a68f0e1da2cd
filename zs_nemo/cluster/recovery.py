"""Puts new engines in the place of dead ones, and keeps away from machines on which processes keep dying.

Owns the budget. Owns no requests and no weights: what becomes of those is the engine pool's matter.
"""

import threading
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from zs_nemo.cluster.roles import Role, RoleError, start_all
from zs_nemo.config.faults import FaultConfig
from zs_nemo.observability.faults import FaultKind, FaultLog

_NODE_LABEL = "ray.io/node-id"

BeginEngine = Callable[[str, Set[str]], tuple[Role, Any]]
"""Makes the actor of an engine, given its name and the machines to keep away from where there is room elsewhere, and
begins to start it; returns it with Ray's reference to its ``start``."""


class EngineRestarts:
    """Implements ``EngineReplacer`` for all engines of a run together. May be used from any thread."""

    def __init__(
        self, begin: BeginEngine, settings: FaultConfig, faults: FaultLog, *, startup_timeout_s: float
    ) -> None:
        self._begin = begin
        self._settings = settings
        self._faults = faults
        self._startup_timeout_s = startup_timeout_s
        self._num_claimed = 0
        self._lock = threading.Lock()

    def claim(self, error: RoleError) -> None:
        """Take one replacement out of ``faults.max_engine_restarts``; raise ``error`` when there is none left."""
        limit = self._settings.max_engine_restarts
        with self._lock:
            if self._num_claimed >= limit:
                spent = f"no engine is replaced any more: faults.max_engine_restarts={limit}"
                raise RoleError.saying(f"{error}\n{spent}", error) from error
            self._num_claimed += 1
        record_death(FaultKind.engine_lost, error, self._settings, self._faults)

    def replace(self, dead: Role) -> Role:
        """End what is left of a dead engine, and return one that has started in its place."""
        dead.end()
        role, reference = self._begin(dead.name, hosts_to_avoid(self._faults, self._settings))
        try:
            start_all([role], [reference], self._startup_timeout_s)
        except BaseException:
            role.end()
            raise
        return role


def record_death(kind: FaultKind, error: RoleError, settings: FaultConfig, faults: FaultLog) -> None:
    """Record that a role has died, and name its machine when that was one too many."""
    name = error.role.name if error.role is not None else "a process"
    host = error.role.place.host if error.role is not None and error.role.place is not None else ""
    faults.record(kind, role=name, host=host, reason=str(error))
    count = faults.deaths_by_host()[host]
    if host and count == settings.max_deaths_per_node:
        reason = f"{count} processes of the run have died on {host} (faults.max_deaths_per_node={count}); look at it"
        faults.record(FaultKind.node_left_out, role=name, host=host, reason=reason)


def hosts_to_avoid(faults: FaultLog, settings: FaultConfig) -> set[str]:
    """Return the machines on which ``faults.max_deaths_per_node`` processes of the run, or more, have died."""
    limit = settings.max_deaths_per_node
    return {host for host, count in faults.deaths_by_host().items() if limit and count >= limit}


def nodes_to_avoid(nodes: Sequence[Mapping[str, Any]], hosts: Set[str], needed: Mapping[str, float]) -> list[str]:
    """Return the ids of those machines among ``ray.nodes()`` that are in ``hosts``, if the others have what is needed.

    ``needed`` are resources in all, such as ``{"GPU": 8}``. Where the others have too little, none is avoided: a run
    on a doubtful machine is better than none.
    """
    alive = [node for node in nodes if node["Alive"]]
    good = [node for node in alive if node["NodeManagerHostname"] not in hosts]
    enough = all(sum(node["Resources"].get(name, 0.0) for node in good) >= count for name, count in needed.items())
    return [node["NodeID"] for node in alive if node not in good] if enough else []


def node_with_room(
    nodes: Sequence[Mapping[str, Any]],
    free: Mapping[str, Mapping[str, float]],
    hosts: Set[str],
    needed: Mapping[str, float],
) -> str | None:
    """Return the id of a machine not in ``hosts`` that has ``needed`` free; None if there is none.

    ``free`` are available resources by the id of the machine.
    """
    for node in nodes:
        if node["Alive"] and node["NodeManagerHostname"] not in hosts:
            room = free.get(node["NodeID"], {})
            if all(room.get(name, 0.0) >= count for name, count in needed.items()):
                return str(node["NodeID"])
    return None


def selector_of_others(hosts: Set[str], needed: Mapping[str, float]) -> dict[str, str]:
    """Return Ray's label selector of all machines but ``hosts``; empty if the others have too little of ``needed``."""
    import ray

    if not hosts:
        return {}
    avoided = nodes_to_avoid(ray.nodes(), hosts, needed)
    return {_NODE_LABEL: f"!in({','.join(avoided)})"} if avoided else {}


def elsewhere(num_gpus: float, hosts: Set[str]) -> dict[str, Any] | None:
    """Return an actor's resources on a machine that is not in ``hosts`` and has room; None if there is none."""
    import ray
    from ray._private.state import available_resources_per_node
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    needed = {"CPU": 1.0} | ({"GPU": num_gpus} if num_gpus else {})
    node = node_with_room(ray.nodes(), available_resources_per_node(), hosts, needed)
    if node is None:
        return None
    return {
        "num_cpus": 1,
        "num_gpus": num_gpus,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
    }
