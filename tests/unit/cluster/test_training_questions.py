"""Which questions a run trains on, and which ones its scripted warm start shows."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.fakes import CharTokenizer
from tests.unit.qa.sets.files import flashrag, write_lines
from zs_nemo.cluster.training_run import TrainingRun
from zs_nemo.config.experiment import DataConfig
from zs_nemo.config.recipe import GrpoRecipeConfig
from zs_nemo.qa.facts import FactsWorld
from zs_nemo.qa.question_source import load_questions


def run_on(path: Path, world: FactsWorld) -> Any:
    """Return a run of which nothing has started but that has its questions."""
    run: Any = object.__new__(TrainingRun)
    run._cfg = GrpoRecipeConfig(data=DataConfig(train=[str(path)]))
    run._world, run._tokenizer = world, CharTokenizer()
    run._questions = load_questions(run._cfg.data, world)
    return run


def test_training_asks_the_sets_that_are_named_and_the_warm_start_scripts_the_facts(
    facts_world: FactsWorld, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "nq" / "train.jsonl", [flashrag(i, f"nq {i}", "a", split="train") for i in range(50)])
    run, asked = run_on(path, facts_world), []
    run._run_dir = SimpleNamespace(rollbacks=[])
    run.system = SimpleNamespace(simulator=None)
    run._engines = SimpleNamespace(training=lambda noise: None)
    run._engines_at_work = nullcontext
    run._commit_checkpoint = lambda: None
    run._collector = SimpleNamespace(collect=lambda questions, *_, **__: asked.extend(questions))
    run.collect(0, noise=0.0)
    assert len(asked) == run._cfg.rollout.num_prompts_per_step
    assert {question.kind for question in asked} == {"nq"}

    batch = run._scripted_batch(0)
    text = "".join(map(chr, batch.token_ids.tolist()))
    shown = [question for question in facts_world.train if question.text in text]
    assert batch.num_sequences == run._cfg.warm_start.global_batch_size and shown and "nq " not in text
