"""Fine-tune a simulator to write useful and useless search results on demand, on judged searches of a real engine.

ZeroSearch (arXiv 2505.04588, section 3.1), on the megatron-core ranks: packed sequences, the loss on the documents
alone, the prompts those that the simulator is asked with afterwards.

    python recipes/sft_simulator.py sft.examples=runs/interactions
    python recipes/grpo.py search.model=runs/sft_simulator/simulator search.template=tuned exp_manager.name=tuned

Asked again with the same run directory it resumes. The examples come from recipes/collect_interactions.py.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from zs_nemo.config.command import command
from zs_nemo.config.registry import register
from zs_nemo.config.sft_simulator import SftSimulatorRecipeConfig

if TYPE_CHECKING:
    from zs_nemo.observability.progress import Progress
    from zs_nemo.observability.run_dir import RunDir

register()


def tune(cfg: SftSimulatorRecipeConfig, run_dir: "RunDir", progress: "Progress") -> Path:
    """Run or resume the fine-tuning and return the path of its report."""
    from zs_nemo.cluster.sft_run import SftRun

    with SftRun(cfg, run_dir, progress) as run:
        run.train()
        return run.finish()


@command("sft_simulator")
def main(composed: DictConfig) -> None:
    """Compose the configuration, then train; the heavy imports come after ``--help`` has been answered."""
    from zs_nemo.cluster.terminal import run_in_terminal

    sys.exit(run_in_terminal(composed, SftSimulatorRecipeConfig, tune))


if __name__ == "__main__":
    main()
