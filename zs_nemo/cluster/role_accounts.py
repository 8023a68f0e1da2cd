"""What every role holds of the machines, and how long it works: the measured side of a run's cost. Pure arithmetic."""

from collections.abc import Mapping

from zs_nemo.cluster.engine_pool import EngineUsage
from zs_nemo.cluster.placement import Placement
from zs_nemo.cluster.setups import Layout
from zs_nemo.observability.cost import SIMULATOR

TRAINING, CRITIC, GENERATION = "training", "critic", "generation"
"""The ranks of the policy and its reference, those of a critic with its own, and the policy's engines."""

_TRAINING_STAGES = ("warm_start", "reference", "train", "held_out")
_CRITIC_STAGES = ("values", "train_critic")


def held_units(layout: Layout, placement: Placement | None, *, threads: int, num_cores: int) -> dict[str, float]:
    """Return the GPUs that each role holds or, without a placement, the CPU cores.

    What processes share is divided among them: a GPU by Ray's fractions; cores by threads, ``threads`` a process, when
    there are more threads than the ``num_cores``. So the roles never hold more than there is. The driver, which mostly
    waits, counts for nothing.
    """
    num_policy = len(layout.policy_engines)
    if placement is not None:
        ranks = [share for _, share in placement.ranks]
        engines = [share for _, share in placement.engines]
    else:
        sizes = [engine.tensor_model_parallel_size for engine in layout.engines]
        num_processes = layout.num_ranks + layout.num_critic_ranks + sum(sizes)
        cores = min(float(threads), num_cores / num_processes)
        ranks = [cores] * (layout.num_ranks + layout.num_critic_ranks)
        engines = [cores * size for size in sizes]
    units = {
        TRAINING: sum(ranks[: layout.num_ranks]),
        CRITIC: sum(ranks[layout.num_ranks :]),
        GENERATION: sum(engines[:num_policy]),
        SIMULATOR: sum(engines[num_policy:]),
    }
    return {role: held for role, held in units.items() if held}


def role_accounts(
    units: Mapping[str, float],
    *,
    on_gpu: bool,
    wall_s: float,
    stage_s: Mapping[str, float],
    usage: Mapping[str, tuple[EngineUsage, int]],
) -> dict[str, dict[str, float]]:
    """Return by role unit-seconds held and busy and, of engines, requests and tokens, since the run's session began.

    Ranks are busy in the stages that they compute in; ``usage`` has for a role with engines what they did together and
    how many they are, which are busy while a request is under way.
    """
    unit = "gpu" if on_gpu else "core"
    accounts = {}
    for role, held in units.items():
        busy_s = sum(stage_s.get(stage, 0.0) for stage in _stages(role, has_own_critic=CRITIC in units))
        counts: dict[str, float] = {}
        if role in usage:
            done, num_engines = usage[role]
            busy_s = done.busy_s / num_engines
            counts = {
                "requests": done.num_requests,
                "prompt_tokens": done.prompt_tokens,
                "completion_tokens": done.completion_tokens,
            }
        accounts[role] = {f"held_{unit}_s": held * wall_s, f"busy_{unit}_s": held * busy_s} | counts
    return accounts


def _stages(role: str, *, has_own_critic: bool) -> tuple[str, ...]:
    if role == CRITIC:
        return _CRITIC_STAGES
    return _TRAINING_STAGES if has_own_critic else _TRAINING_STAGES + _CRITIC_STAGES
