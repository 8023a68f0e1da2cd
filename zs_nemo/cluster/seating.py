"""Which machine and which of its GPUs every bundle of a placement lies on: as planned, and as Ray decided."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zs_nemo.cluster.placement import Placement


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One machine."""

    name: str
    num_gpus: int


@dataclass(frozen=True, kw_only=True)
class Seating:
    """Where a placement lies."""

    placement: Placement
    machines: tuple[Machine, ...]
    machine_of_bundle: tuple[int, ...]

    def gpus_of_bundle(self) -> list[tuple[int, range]]:
        """Return (machine, its GPUs) per bundle; a machine's bundles take its GPUs in their order.

        Ray numbers the GPUs of a machine itself: which of two neighbours is called 0 may differ from the driver's view.
        """
        taken = [0] * len(self.machines)
        places = []
        for bundle, machine in zip(self.placement.bundles, self.machine_of_bundle, strict=True):
            first, count = taken[machine], int(bundle["GPU"])
            taken[machine] += count
            places.append((machine, range(first, first + count)))
        return places


def planned_seating(placement: Placement, *, num_machines: int, gpus_per_machine: int) -> Seating:
    """Fill the machines one after the other, as Ray packs them.

    Raises ``ValueError`` for an engine that no machine has enough free GPUs for.
    """
    free = [gpus_per_machine] * num_machines
    chosen = []
    for bundle in placement.bundles:
        count = int(bundle["GPU"])
        machine = next((index for index, left in enumerate(free) if left >= count), None)
        if machine is None:
            raise ValueError(
                f"{count} GPUs of one machine are needed together, but none of {num_machines} machines with "
                f"{gpus_per_machine} GPUs has as many free; lower the engine's tensor_model_parallel_size "
                "(generation, search), or take machines with more GPUs (cluster.gpus_per_node)"
            )
        free[machine] -= count
        chosen.append(machine)
    machines = tuple(Machine(name=f"machine {index + 1}", num_gpus=gpus_per_machine) for index in range(num_machines))
    return Seating(placement=placement, machines=machines, machine_of_bundle=tuple(chosen))


def seating_by_ray(
    placement: Placement, nodes: Sequence[Mapping[str, Any]], node_of_bundle: Mapping[int, str]
) -> Seating:
    """Return where Ray put the bundles: ``nodes`` as ``ray.nodes()`` lists them, ``node_of_bundle`` by their ids."""
    owners = [node_of_bundle[index] for index in range(len(placement.bundles))]
    used = list(dict.fromkeys(owners))
    known = {node["NodeID"]: node for node in nodes}
    machines = []
    for node in used:
        own = [bundle for bundle, owner in zip(placement.bundles, owners, strict=True) if owner == node]
        needed = sum(int(bundle["GPU"]) for bundle in own)
        told = known.get(node, {})
        has = int(told.get("Resources", {}).get("GPU", 0))
        machines.append(Machine(name=told.get("NodeManagerHostname", node[:8]), num_gpus=max(has, needed)))
    chosen = tuple(used.index(owner) for owner in owners)
    return Seating(placement=placement, machines=tuple(machines), machine_of_bundle=chosen)
