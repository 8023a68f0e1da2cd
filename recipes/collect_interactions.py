"""Record what a policy asks a real search engine and what comes back, judged: what a simulator is fine-tuned on.

ZeroSearch (arXiv 2505.04588, section 3.1) has a policy search the real engine over training questions, judges what it
was shown, and fine-tunes the simulator to write either kind on demand. Differences: equal searches count once, both
kinds are balanced, and the questions whose searches measure the loss are apart from those that are learned from.

    python recipes/collect_interactions.py policy.model=runs/quickstart/policy
    python recipes/collect_interactions.py policy.model=runs/quickstart/policy collect.judge=outcome \\
        exp_manager.name=outcome

Asked again with the same run directory it resumes. examples_train.jsonl and examples_held_out.jsonl (.parquet with
collect.examples_format=parquet) are for recipes/sft_simulator.py; their form is in zs_nemo/types/interaction.py.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from zs_nemo.config.collect import CollectRecipeConfig
from zs_nemo.config.command import command
from zs_nemo.config.registry import register

if TYPE_CHECKING:
    from zs_nemo.observability.progress import Progress
    from zs_nemo.observability.run_dir import RunDir

register()


def collect(cfg: CollectRecipeConfig, run_dir: "RunDir", progress: "Progress") -> Path:
    """Run or resume the collection and return the path of its report."""
    from zs_nemo.cluster.collection_run import CollectionRun

    with CollectionRun(cfg, run_dir, progress) as run:
        run.roll_out()
        run.judge()
        return run.finish()


@command("collect_interactions")
def main(composed: DictConfig) -> None:
    """Compose the configuration, then collect; the heavy imports come after ``--help`` has been answered."""
    from zs_nemo.cluster.terminal import run_in_terminal

    sys.exit(run_in_terminal(composed, CollectRecipeConfig, collect))


if __name__ == "__main__":
    main()
