"""Measure how good a simulator is: does it write what it is asked for, and does it look like the real engine?

    python recipes/collect_interactions.py policy.model=runs/quickstart/policy collect.split=test \\
        exp_manager.name=interactions_test
    python recipes/evaluate_simulator.py                                   # the prompted simulator of the quickstart
    python recipes/evaluate_simulator.py search.model=runs/sft_simulator/simulator search.template=tuned \\
        +search@baseline=simulated output=runs/simulator_quality_tuned     # fine-tuned, beside the prompted one

Every query of held-out questions whose real documents hold the answer is asked twice, for useful and for noisy
documents. report.html and report.json in ``output`` have the measures, DIR/search.jsonl what was written.
"""

import sys

from omegaconf import DictConfig

from zs_nemo.config.command import command
from zs_nemo.config.evaluate_simulator import EvaluateSimulatorConfig
from zs_nemo.config.registry import register

register()


@command("evaluate_simulator")
def main(composed: DictConfig) -> None:
    """Compose the configuration, then measure; the heavy imports come after ``--help`` has been answered."""
    from zs_nemo.cluster.simulator_evaluation import evaluate_simulators
    from zs_nemo.cluster.terminal import run_command
    from zs_nemo.observability.progress import Progress

    def measure(cfg: EvaluateSimulatorConfig) -> None:
        with Progress("simulator quality") as progress:
            page = evaluate_simulators(cfg, progress)
        print(f"done. The report: {page}")

    sys.exit(run_command(composed, EvaluateSimulatorConfig, measure))


if __name__ == "__main__":
    main()
