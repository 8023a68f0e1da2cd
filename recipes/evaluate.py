"""Evaluate a policy: any folder or endpoint, any question sets, any search engine or none, with baselines.

    python recipes/evaluate.py policy.model=runs/quickstart/policy                 # the facts world's test set, BM25
    python recipes/evaluate.py policy.model=runs/quickstart/policy search=simulated search.template=open \\
        evaluate.limit=500 'data.test=[pyserini/nq:test,pyserini/triviaqa:test]' \\
        'evaluate.methods=[agent,retrieve_then_read,chain_of_thought,direct]' exp_manager.name=nq_triviaqa
    python recipes/evaluate.py search=none 'evaluate.methods=[direct]' exp_manager.name=closed_book
    python recipes/evaluate.py 'endpoint.addresses=[http://127.0.0.1:8000/v1]' endpoint.served_model=NAME \\
        search=retriever search.url=http://127.0.0.1:8001 search.num_documents=3 exp_manager.name=served
    python recipes/evaluate.py manifest=runs/nq_triviaqa/manifest.json             # the same once more, or what differs
    python recipes/compare.py runs/nq_triviaqa runs/another                        # paired, by set and in the mean

All rows of every set unless evaluate.limit says otherwise, greedy unless evaluate.temperature does. Scores are strict
EM, containment (what the paper's code calls EM) and F1, with 95 % bootstrap intervals. Asked again with the same run
directory it goes on where it ended. Differences from the published evaluation: greedy instead of sampled, no row is
dropped, exact match is exact, and a question whose search failed or whose time ran out has no score instead of a 0.
"""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from zs_nemo.config.command import command
from zs_nemo.config.evaluate import EvaluateRecipeConfig
from zs_nemo.config.registry import register

if TYPE_CHECKING:
    from zs_nemo.observability.progress import Progress
    from zs_nemo.observability.run_dir import RunDir

register()


def evaluate(cfg: EvaluateRecipeConfig, run_dir: "RunDir", progress: "Progress") -> Path:
    """Run or resume the evaluation and return the path of its report."""
    from zs_nemo.cluster.evaluation_run import EvaluationRun

    with EvaluationRun(cfg, run_dir, progress) as run:
        for method in cfg.evaluate.methods:
            run.evaluate(method)
        return run.finish()


@command("evaluate")
def main(composed: DictConfig) -> None:
    """Compose the configuration, then evaluate; the heavy imports come after ``--help`` has been answered."""
    from zs_nemo.cluster.terminal import run_in_terminal
    from zs_nemo.evaluation.frozen_run import with_manifest

    overrides = list(HydraConfig.get().overrides.task)
    settings = partial(with_manifest, composed, overrides)
    sys.exit(run_in_terminal(settings, EvaluateRecipeConfig, evaluate))


if __name__ == "__main__":
    main()
