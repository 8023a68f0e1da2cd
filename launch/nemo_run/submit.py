#!/usr/bin/env python3
"""Submit a recipe through NeMo-Run: its SLURM executor, or its local one for this machine.

    python3.11 -m venv launch/nemo_run/.venv
    launch/nemo_run/.venv/bin/pip install -r launch/nemo_run/requirements.txt
    launch/nemo_run/.venv/bin/python launch/nemo_run/submit.py --account mine --partition gpu --nodes 2 \\
        --gpus-per-node 8 --time 24:00:00 grpo experiment=zerosearch_grpo_7b
    launch/nemo_run/.venv/bin/python launch/nemo_run/submit.py --executor local --dryrun grpo trainer.max_steps=2

After the recipe come Hydra overrides as typed. Call it where sbatch is. On every node the same script runs as under
launch/slurm/recipe.sbatch, with the same variables; a job that was asked to stop, or has lost a node, is requeued in
the same way. NeMo-Run keeps its experiments, with the output, under NEMORUN_HOME. --dryrun submits nothing.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SETUP = """\
# No secret of the job into its output.
{{ set +x; }} 2>/dev/null
root={root}
. "$root/launch/slurm/job.sh"
set +eu
trap '. "$root/launch/slurm/end.sh"' EXIT
# Cancelled, or over its limit: there the end of the sbatch is not reached either, and nothing is requeued.
trap 'trap - EXIT; exit 143' TERM"""
"""What NeMo-Run's batch script does before the step, and when it ends. It goes on after errors, as it expects."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the settings of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--executor", choices=("slurm", "local"), default="slurm")
    parser.add_argument("--account", default="", help="of SLURM")
    parser.add_argument("--partition", help="of SLURM")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus-per-node", type=int)
    parser.add_argument("--time", default="24:00:00", help="limit of the job")
    parser.add_argument("--signal-s", type=int, default=600, help="so long before the limit it is told (recipe.sbatch)")
    parser.add_argument("--dryrun", action="store_true", help="show what would be submitted")
    parser.add_argument("recipe", help="such as grpo")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, metavar="OVERRIDE", help="settings, as typed")
    parsed = parser.parse_args(arguments)
    if not (ROOT / "recipes" / f"{parsed.recipe}.py").is_file():
        known = sorted(path.stem for path in (ROOT / "recipes").glob("[a-z]*.py"))
        parser.error(f"there is no recipe {parsed.recipe!r}; choose one of {', '.join(known)}")
    return parsed


def node_script(recipe: str, overrides: list[str]) -> dict[str, Any]:
    """Return the task of one node, as fields of ``nemo_run.Script``, which quotes nothing itself."""
    words = [recipe, *overrides]
    return {"path": str(ROOT / "launch" / "slurm" / "node.sh"), "args": [shlex.quote(word) for word in words]}


def local_script(recipe: str, overrides: list[str]) -> dict[str, Any]:
    """Return the recipe itself, as fields of ``nemo_run.Script``."""
    python = ROOT / ".venv" / "bin" / "python"
    return {
        "entrypoint": str(python) if python.exists() else "python",
        "path": str(ROOT / "recipes" / f"{recipe}.py"),
        "args": overrides,
    }


def slurm_fields(settings: argparse.Namespace) -> dict[str, Any]:
    """Return what launch/slurm/recipe.sbatch asks SLURM for, as fields of ``nemo_run.SlurmExecutor``."""
    image, mounts = os.environ.get("ZS_NEMO_CONTAINER"), os.environ.get("ZS_NEMO_MOUNTS", "")
    return {
        "account": settings.account or None,
        "partition": settings.partition,
        "job_name_prefix": "zs-nemo-",
        "nodes": settings.nodes,
        "ntasks_per_node": 1,
        "gpus_per_node": settings.gpus_per_node,
        "time": settings.time,
        "signal": f"USR1@{settings.signal_s}",
        "exclusive": True,
        "mem": "0",
        "container_image": image,
        "container_mounts": [f"{ROOT}:{ROOT}", *filter(None, mounts.split(","))] if image else [],
        "srun_args": ["--ntasks-per-node=1", "--cpu-bind=none"],
        "setup_lines": SETUP.format(root=shlex.quote(str(ROOT))),
        # Whether it is requeued, end.sh decides.
        "retries": 0,
    }


def main(arguments: list[str]) -> None:
    """Submit, or show what would be submitted."""
    settings = parse(arguments)
    # It takes seconds to import.
    import nemo_run

    if settings.executor == "local":
        executor = nemo_run.LocalExecutor()
        task = nemo_run.Script(**local_script(settings.recipe, settings.overrides))
    else:
        # Nothing is packed: the project's folder is seen by all nodes.
        executor = nemo_run.SlurmExecutor(**slurm_fields(settings), packager=nemo_run.Packager())
        task = nemo_run.Script(**node_script(settings.recipe, settings.overrides))
    with nemo_run.Experiment(f"zs_nemo_{settings.recipe}") as experiment:
        experiment.add(task, executor=executor, name=settings.recipe)
        if settings.dryrun:
            experiment.dryrun()
        else:
            # A job of days is not watched from here.
            experiment.run(detach=settings.executor == "slurm")


if __name__ == "__main__":
    main(sys.argv[1:])
