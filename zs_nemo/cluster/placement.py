"""Which process gets which GPU. Pure arithmetic; no run has been placed on more than one real GPU yet."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from zs_nemo.cluster.setups import Layout
from zs_nemo.config.rollout import RefitTransport


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Bundles of one Ray placement group, and for every process its bundle and its share of GPUs."""

    bundles: tuple[dict[str, float], ...]
    ranks: tuple[tuple[int, float], ...]
    """Per rank: (bundle, GPUs)."""
    engines: tuple[tuple[int, float], ...]
    """Per engine: (bundle, GPUs)."""

    @property
    def num_gpus(self) -> float:
        """GPUs of all bundles."""
        return sum(bundle["GPU"] for bundle in self.bundles)


def place_run(layout: Layout, num_gpus: int, transport: RefitTransport) -> Placement:
    """Place the processes of a run so that the policy's weights can travel as ``generation.refit_transport`` says.

    ``cuda_ipc`` puts the policy's engines on the GPUs of its ranks. Raises ``ValueError`` for too few GPUs, and where
    the weights could not travel.
    """
    num_ranks = layout.num_ranks + layout.num_critic_ranks
    sizes = [setup.tensor_model_parallel_size for setup in layout.engines]
    num_receivers = len(layout.policy_engines) if layout.num_ranks else 0
    if transport is not RefitTransport.cuda_ipc:
        placement = place_on_gpus(num_gpus, num_ranks, sizes)
        if transport is RefitTransport.nccl:
            check_sender_is_alone(placement, num_receivers=num_receivers)
        return placement
    if widest := max((size for size in sizes[:num_receivers] if size > 1), default=0):
        raise ValueError(
            f"generation.refit_transport=cuda_ipc with generation.tensor_model_parallel_size={widest}, but an engine "
            "that spans several GPUs shares none with a training rank; set generation.tensor_model_parallel_size=1, or "
            "generation.refit_transport=nccl or shared_memory"
        )
    return place_on_gpus(num_gpus, num_ranks, sizes, num_receivers=num_receivers, num_senders=layout.num_ranks)


def place_on_gpus(
    num_gpus: int, num_ranks: int, engine_sizes: Sequence[int], *, num_receivers: int = 0, num_senders: int = 0
) -> Placement:
    """Give every process GPUs of its own if there are enough, otherwise let engines share GPUs with the ranks.

    Two ranks never share a GPU, which NCCL refuses. ``engine_sizes`` are the engines' tensor-parallel sizes; an engine
    that spans several GPUs does not share them. The first ``num_receivers`` engines sit with the first ``num_senders``
    ranks however many GPUs there are.
    """
    apart = engine_sizes[num_receivers:]
    enough = num_gpus >= num_ranks + sum(apart)
    if not enough and (num_gpus < max(1, num_ranks) or any(size > 1 for size in engine_sizes)):
        raise ValueError(
            f"{num_gpus} GPUs are too few for {num_ranks} training ranks and engines with "
            f"tensor_model_parallel_size {list(engine_sizes)}: every rank needs a GPU of its own, and engines share "
            "with ranks only at tensor_model_parallel_size=1; lower trainer.devices, critic.num_ranks or the engines' "
            "sizes, or add GPUs"
        )
    sizes = [1] * num_ranks + list(apart) if enough else [1] * num_gpus
    owners = list(range(num_ranks))
    for index in range(len(engine_sizes)):
        if index < num_receivers:
            choices = range(num_senders)
        elif enough:
            choices = range(num_ranks + index - num_receivers, len(sizes))
        else:
            choices = range(num_gpus)
        # Where the fewest are: GPUs without a rank first, then round.
        owners.append(min(choices, key=owners.count))
    places = [(owner, sizes[owner] / owners.count(owner)) for owner in owners]
    bundles = tuple({"GPU": float(size), "CPU": float(max(1, owners.count(at)))} for at, size in enumerate(sizes))
    return Placement(bundles=bundles, ranks=tuple(places[:num_ranks]), engines=tuple(places[num_ranks:]))


def check_engines_within_machines(placement: Placement, gpus_of_machines: Sequence[int]) -> None:
    """Raise ``ValueError`` for an engine that spans more GPUs than any machine has: Ray would wait for such a one."""
    widest = int(max((bundle["GPU"] for bundle in placement.bundles), default=0))
    most = max(gpus_of_machines, default=0)
    if widest > most:
        raise ValueError(
            f"an engine with tensor_model_parallel_size={widest} needs as many GPUs of one machine, but none has more "
            f"than {most}; lower generation.tensor_model_parallel_size or search.tensor_model_parallel_size, or "
            "allocate machines with more GPUs"
        )


def check_sender_is_alone(placement: Placement, *, num_receivers: int) -> None:
    """Raise ``ValueError`` when one of the first ``num_receivers`` engines shares its GPU with the first rank."""
    if placement.ranks and any(bundle == placement.ranks[0][0] for bundle, _ in placement.engines[:num_receivers]):
        raise ValueError(
            "generation.refit_transport=nccl, but an engine of the policy shares a GPU with the first training rank, "
            "which NCCL refuses; set generation.refit_transport=shared_memory, or give the run more GPUs"
        )


def in_machine_order(placement: Placement, machines: Sequence[str]) -> Placement:
    """Return the placement with ranks that follow each other on one machine, given every bundle's machine.

    Ray fills machine after machine, but takes equal bundles in any order once there are more than 16 of them. Machines
    with most bundles of a kind come first, so that groups of ranks end where a machine does.
    """
    seats: dict[int, int] = {}
    firsts = {machine: machines.index(machine) for machine in machines}
    for kind in placement.bundles:
        alike = [index for index, bundle in enumerate(placement.bundles) if bundle == kind]
        counts = Counter(machines[index] for index in alike)
        ordered = sorted(alike, key=lambda index: (-counts[machines[index]], firsts[machines[index]]))
        seats.update(zip(alike, ordered, strict=True))
    ranks, engines = (
        tuple((seats[bundle], share) for bundle, share in places) for places in (placement.ranks, placement.engines)
    )
    return replace(placement, ranks=ranks, engines=engines)


def check_tensor_parallel_within_machines(role: str, size: int, machines: Sequence[str]) -> None:
    """Raise ``ValueError`` when ranks that share tensors sit apart; ``machines`` are those of the role's ranks."""
    for first in range(0, len(machines), size):
        used = list(dict.fromkeys(machines[first : first + size]))
        if len(used) > 1:
            raise ValueError(
                f"{role}.tensor_model_parallel_size={size}, but {role}-rank-{first} to {role}-rank-{first + size - 1} "
                f"would sit on several machines ({', '.join(used)}), whose network is much slower; lower it, allocate "
                "machines whole and with as many GPUs each, or say so with policy.tensor_parallel_across_nodes=true"
            )
