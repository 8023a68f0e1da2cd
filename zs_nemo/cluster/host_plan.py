"""What a run on GPUs keeps in the memory of its machines, beside its processes."""

from zs_nemo.cluster.memory_plan import GIB, engine_weight_bytes, parameters_of
from zs_nemo.cluster.setups import Layout, critic_settings
from zs_nemo.config.recipe import RecipeConfig
from zs_nemo.weights.families import read_architecture

_OPTIMIZER = 12
"""Bytes a parameter: master weights and two moments in float32."""


def host_parts(cfg: RecipeConfig, layout: Layout) -> dict[str, float]:
    """Return the bytes by what they are for, of all machines together; what there is none of is left out.

    The checkpoint's are on the machines of the first data-parallel replica, which gathers it; the others are spread as
    the engines and ranks are.
    """
    parameters = parameters_of(read_architecture(layout.policy_folder)) if layout.num_ranks else 0
    critic = critic_settings(cfg)
    offloaded = cfg.policy.optim.optimizer_cpu_offload + bool(critic and critic.optim.optimizer_cpu_offload)
    parts = {
        # vLLM copies them there, page-locked, and back.
        "engines asleep": float(sum(engine_weight_bytes(setup) for setup in layout.engines if setup.sleeps)),
        "optimizers": float(_OPTIMIZER * parameters * offloaded),
        # A policy's and a critic's are written one after the other.
        "a checkpoint": float(_OPTIMIZER * parameters),
    }
    return {name: size for name, size in parts.items() if size}


def host_misfit(parts: dict[str, float], available: float) -> str | None:
    """Return why one machine's memory does not hold the parts; None if it does."""
    total = sum(parts.values())
    if total <= available:
        return None
    listed = " + ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
    remedies = {
        "engines asleep": "let fewer engines sleep (generation.num_engines, search.num_engines, sleep_while_training)",
        "optimizers": "leave the optimizers on the GPUs (optim.optimizer_cpu_offload=false)",
        "a checkpoint": "take a machine with more memory, or a smaller model",
    }
    remedy = ", or ".join(remedies[name] for name in parts)
    return (
        f"in the memory of the machine, beside the processes, there would be {listed} = {total / GIB:.1f} GiB, but "
        f"{available / GIB:.1f} GiB are available; {remedy}"
    )
