"""Which process gets which GPU. Pure arithmetic; no run has been placed on real GPUs yet."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


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


def place_on_gpus(num_gpus: int, num_ranks: int, engine_sizes: Sequence[int]) -> Placement:
    """Give every process GPUs of its own if there are enough, otherwise let engines share GPUs with the ranks.

    Two ranks never share a GPU, which NCCL refuses. ``engine_sizes`` are the engines' tensor-parallel sizes; an engine
    that spans several GPUs does not share them.
    """
    if num_gpus >= num_ranks + sum(engine_sizes):
        sizes = [1] * num_ranks + list(engine_sizes)
        places = [(index, float(size)) for index, size in enumerate(sizes)]
        bundles = tuple({"GPU": float(size), "CPU": 1.0} for size in sizes)
        return Placement(bundles=bundles, ranks=tuple(places[:num_ranks]), engines=tuple(places[num_ranks:]))
    if num_gpus < num_ranks or any(size > 1 for size in engine_sizes):
        raise ValueError(
            f"{num_gpus} GPUs are too few for {num_ranks} training ranks and engines with "
            f"tensor_model_parallel_size {list(engine_sizes)}: every rank needs a GPU of its own, and engines share "
            "with ranks only at tensor_model_parallel_size=1; lower trainer.devices, critic.num_ranks or the engines' "
            "sizes, or add GPUs"
        )
    # Engines take the GPUs without a rank first, then go round.
    owners = list(range(num_ranks)) + [(num_ranks + index) % num_gpus for index in range(len(engine_sizes))]
    counts = Counter(owners)
    places = [(owner, 1.0 / counts[owner]) for owner in owners]
    bundles = tuple({"GPU": 1.0, "CPU": float(max(1, counts[index]))} for index in range(num_gpus))
    return Placement(bundles=bundles, ranks=tuple(places[:num_ranks]), engines=tuple(places[num_ranks:]))


def check_sender_is_alone(placement: Placement, *, num_receivers: int) -> None:
    """Raise ``ValueError`` when one of the first ``num_receivers`` engines shares its GPU with the first rank."""
    if placement.ranks and any(bundle == placement.ranks[0][0] for bundle, _ in placement.engines[:num_receivers]):
        raise ValueError(
            "generation.refit_transport=nccl, but an engine of the policy shares a GPU with the first training rank, "
            "which NCCL refuses; set generation.refit_transport=shared_memory, or give the run more GPUs"
        )
