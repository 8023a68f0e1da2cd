"""Play a training step of a configuration as a discrete-event simulation, and say where its time goes.

Nothing is started and no GPU is needed; models are folders of which config.json is enough. Shown are the step by
stage, which role to grow, what rollout.max_staleness=1 would bring, and with simulation.nodes other sizes of the
cluster.

    python recipes/simulate_cluster.py experiment=zerosearch_grpo_7b
    python recipes/simulate_cluster.py experiment=zerosearch_grpo_7b 'simulation.nodes=[1,8,64]'
    python recipes/simulate_cluster.py --config-name ppo experiment=zerosearch_ppo_7b simulation.training_efficiency=0.4
    python recipes/simulate_cluster.py simulation.calibrate_on=runs/quickstart simulation.roles_apart=true

Settings are those of the recipe that would run; simulation.* is what is assumed where nothing was measured, and every
number is printed with its source. With simulation.calibrate_on the lengths come from a run, on machines without GPUs
the speeds too; its later steps are then predicted and held against what they took. simulation.json and
simulation.svg, the picture, are written into exp_manager.exp_dir/exp_manager.name/simulation. Not played:
evaluations, checkpoints; where roles share GPUs, what engines on one GPU take from each other.
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

from zs_nemo.config.command import command
from zs_nemo.config.recipe import RecipeConfig
from zs_nemo.config.registry import register, to_dataclass

register()


def simulate(cfg: RecipeConfig) -> None:
    """Play the configuration, print what came out, and write it."""
    from zs_nemo.cluster.simulation.planned_cluster import PlannedCluster
    from zs_nemo.cluster.simulation.result_page import advice, check_table, document, picture, sources_table, table
    from zs_nemo.observability.files import write_json, write_text

    planned = PlannedCluster(cfg)
    base, grown = planned.as_configured(), planned.with_more()
    sections = {"configured": [base], "grown": grown, "overlap": planned.overlapped(), "nodes": planned.on_nodes()}
    numbers, checked = list(planned.sources.quantities.values()), planned.check()
    print(f"{table(sections)}\n\n{advice(base, grown)}\n\n{sources_table(numbers)}")
    if planned.shares_gpus:
        print(
            "\nRoles share GPUs: their engines are played as fast as if each had its GPU to itself, and falling asleep "
            "and waking up as if they took no time. A step takes longer than this."
        )
    if checked:
        print(f"\nsteps that were not calibrated on, in seconds\n{check_table(checked)}")
    folder = Path(cfg.exp_manager.exp_dir) / cfg.exp_manager.name / "simulation"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "simulation.json", document(sections, numbers, checked))
    write_text(folder / "simulation.svg", picture(sections))
    print(f"\nthe picture: {folder / 'simulation.svg'}")


@command("grpo")
def main(composed: DictConfig) -> None:
    """Compose the configuration of the recipe that would run, and play it."""
    try:
        simulate(to_dataclass(composed, RecipeConfig))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
