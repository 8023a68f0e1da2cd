"""Say how much memory a run needs, who would sit where and whether it fits, without starting anything.

    python recipes/plan.py                                       # the quickstart on this machine
    python recipes/plan.py --config-name ppo                     # the same with PPO's critic
    python recipes/plan.py policy.model=/models/Qwen2.5-7B search.model=/models/simulator trainer.devices=8 \\
        trainer.accelerator=gpu cluster.gpus_per_node=8 cluster.gpu_memory_gib=80

Settings are those of the recipe that will run. Models are folders of which config.json is enough. Exit code 0: it fits;
2: it does not, with the reason and, if there is one, the layout of the policy that would.
"""

import sys
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from zs_nemo.config.command import command
from zs_nemo.config.recipe import RecipeConfig
from zs_nemo.config.registry import register, to_dataclass

if TYPE_CHECKING:
    from zs_nemo.cluster.memory_plan import MemoryPlan
    from zs_nemo.cluster.setups import Layout

register()


def plan(cfg: RecipeConfig) -> int:
    """Print the plan and return the exit code."""
    from zs_nemo.cluster.gpu_plan import local_gpus
    from zs_nemo.cluster.memory_plan import GIB
    from zs_nemo.cluster.preflight import check_cuts
    from zs_nemo.cluster.search_engines import check_named
    from zs_nemo.cluster.settled_config import settled
    from zs_nemo.cluster.setups import derive_layout

    check_named(cfg)
    planned_gpus = cfg.cluster.gpus_per_node * cfg.trainer.num_nodes
    use_gpu = True if planned_gpus else None
    cfg = settled(cfg, use_gpu=use_gpu)
    layout = derive_layout(cfg, use_gpu=use_gpu)
    check_cuts(cfg, layout)
    if not layout.use_gpu:
        return _plan_machine(cfg, layout)
    if planned_gpus:
        return _plan_gpus(cfg, layout, planned_gpus, cfg.cluster.gpu_memory_gib * GIB, cfg.trainer.num_nodes)
    return _plan_gpus(cfg, layout, *local_gpus(), num_machines=1)


def _plan_machine(cfg: RecipeConfig, layout: "Layout") -> int:
    """Hold a run without GPUs against the memory of this machine."""
    from zs_nemo.cluster.available_memory import available_memory
    from zs_nemo.cluster.gpu_plan import first_layout, overrides_of
    from zs_nemo.cluster.memory_plan import GIB, plan_memory
    from zs_nemo.cluster.placement_drawing import draw_placement
    from zs_nemo.cluster.preflight import MEMORY_REMEDY, memory_misfit

    memory, available = plan_memory(cfg, layout), available_memory()
    _print_processes(memory)
    print(f"{'all processes':<20} {memory.total / GIB:7.2f} GiB   of {available / GIB:.2f} GiB that are available")
    print(f"\n{draw_placement(cfg, layout)}", end="")
    problem = memory_misfit(memory, available)
    if problem is None:
        return 0
    print(f"\ndoes not fit: {problem}")
    proposal = first_layout(cfg, layout, lambda other: plan_memory(other, layout).total <= available)
    if proposal is None:
        print(f"no layout of the policy fits; {MEMORY_REMEDY}")
    else:
        print(f"fits with {overrides_of(cfg.policy, proposal)}")
    return 2


def _plan_gpus(cfg: RecipeConfig, layout: "Layout", num_gpus: int, gpu_bytes: float, num_machines: int) -> int:
    """Hold a run against GPUs."""
    from zs_nemo.cluster.gpu_plan import misfits, overrides_of, plan_gpus, propose_layout, with_kv_cache
    from zs_nemo.cluster.host_plan import host_parts
    from zs_nemo.cluster.memory_plan import GIB, plan_memory
    from zs_nemo.cluster.placement import place_run
    from zs_nemo.cluster.placement_drawing import draw_placement
    from zs_nemo.cluster.seating import planned_seating

    _print_processes(with_kv_cache(plan_memory(cfg, layout), layout, gpu_bytes))
    for load in plan_gpus(cfg, layout, num_gpus, gpu_bytes):
        roles = ", ".join(f"{role} {size / GIB:.1f}" for role, size in load.roles) or "nothing"
        print(f"GPU {load.number:<16} {load.total / GIB:7.1f} GiB   of {gpu_bytes / GIB:.1f}: {roles}")
    in_hosts = host_parts(cfg, layout)
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in in_hosts.items())
    machines = "the machine" if num_machines == 1 else f"the {num_machines} machines together"
    print(f"memory of {machines}, beside the processes: {sum(in_hosts.values()) / GIB:.1f} GiB: {parts}")
    placement = place_run(layout, num_gpus, cfg.generation.refit_transport)
    seating = planned_seating(placement, num_machines=num_machines, gpus_per_machine=num_gpus // num_machines)
    print(f"\n{draw_placement(cfg, layout, seating)}")
    problems = misfits(cfg, layout, num_gpus, gpu_bytes)
    for problem in problems:
        print(f"does not fit: {problem}")
    if not problems:
        return 0
    proposal = propose_layout(cfg, layout, num_gpus, gpu_bytes)
    if proposal is None:
        print(
            "no layout of the policy fits; take more GPUs, a smaller model, a smaller policy.train_mb_tokens, or give "
            "the engines less with generation.gpu_memory_utilization and search.gpu_memory_utilization"
        )
    else:
        print(f"fits with {overrides_of(cfg.policy, proposal)}")
    return 2


def _print_processes(memory: "MemoryPlan") -> None:
    from zs_nemo.cluster.memory_plan import GIB

    for process in memory.processes:
        parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in process.parts.items())
        print(f"{process.role:<20} {process.total / GIB:7.2f} GiB   {parts}")


@command("grpo")
def main(composed: DictConfig) -> None:
    """Compose the configuration of the recipe that will run, and plan it."""
    try:
        code = plan(to_dataclass(composed, RecipeConfig))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    sys.exit(code)


if __name__ == "__main__":
    main()
