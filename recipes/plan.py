"""Say how much memory a run needs, who would sit where and whether it fits, without starting anything.

    python recipes/plan.py                                       # the quickstart on this machine
    python recipes/plan.py --config-name ppo                     # the same with PPO's critic
    python recipes/plan.py policy.model=/models/Qwen2.5-7B search.model=/models/simulator trainer.devices=8 \\
        trainer.accelerator=gpu cluster.gpus_per_node=8 cluster.gpu_memory_gib=80

Settings are those of the recipe that will run. Models are folders of which config.json is enough. Exit code 0: it fits;
2: it does not, with the reason and, if there is one, the layout of the policy that would.
"""

import sys

from omegaconf import DictConfig

from zs_nemo.config.command import command
from zs_nemo.config.recipe import RecipeConfig
from zs_nemo.config.registry import register, to_dataclass

register()


def plan(cfg: RecipeConfig) -> int:
    """Print the plan and return the exit code."""
    from zs_nemo.cluster.available_memory import available_memory
    from zs_nemo.cluster.gpu_plan import local_gpus, misfits, overrides_of, plan_gpus, propose_layout
    from zs_nemo.cluster.memory_plan import GIB, plan_memory
    from zs_nemo.cluster.placement import place_run
    from zs_nemo.cluster.placement_drawing import draw_placement
    from zs_nemo.cluster.preflight import check_cuts
    from zs_nemo.cluster.seating import planned_seating
    from zs_nemo.cluster.settled_config import settled
    from zs_nemo.cluster.setups import derive_layout

    planned_gpus = cfg.cluster.gpus_per_node * cfg.trainer.num_nodes
    use_gpu = True if planned_gpus else None
    cfg = settled(cfg, use_gpu=use_gpu)
    layout = derive_layout(cfg, use_gpu=use_gpu)
    check_cuts(cfg, layout)
    memory = plan_memory(cfg, layout)
    for process in memory.processes:
        parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in process.parts.items())
        print(f"{process.role:<20} {process.total / GIB:7.2f} GiB   {parts}")
    if not layout.use_gpu:
        available = available_memory()
        print(f"{'all processes':<20} {memory.total / GIB:7.2f} GiB   of {available / GIB:.2f} GiB that are available")
        print(f"\n{draw_placement(cfg, layout)}", end="")
        return 0 if memory.total <= available else 2
    num_gpus, gpu_bytes = (planned_gpus, cfg.cluster.gpu_memory_gib * GIB) if planned_gpus else local_gpus()
    for load in plan_gpus(cfg, layout, num_gpus, gpu_bytes):
        roles = ", ".join(f"{role} {size / GIB:.1f}" for role, size in load.roles) or "nothing"
        print(f"GPU {load.number:<16} {load.total / GIB:7.1f} GiB   of {gpu_bytes / GIB:.1f}: {roles}")
    placement = place_run(layout, num_gpus, cfg.generation.refit_transport)
    machines = cfg.trainer.num_nodes if planned_gpus else 1
    seating = planned_seating(placement, num_machines=machines, gpus_per_machine=num_gpus // machines)
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
