"""The pages of the recipes that make a simulator."""

import json
from pathlib import Path
from typing import Any

import pytest

from recipes.report import main
from zs_nemo.config.collect import CollectRecipeConfig
from zs_nemo.config.recipe import RecipeConfig
from zs_nemo.config.sft_simulator import SftSimulatorRecipeConfig
from zs_nemo.observability.files import write_json, write_json_lines
from zs_nemo.observability.phase import Phase
from zs_nemo.observability.preparation_page import write_preparation_page
from zs_nemo.observability.report import RunFiles, account_of, write_report
from zs_nemo.observability.run_dir import RunDir
from zs_nemo.observability.timer import StageTimer

LOSSES = {"0": {"loss": 3.21, "useful_loss": 3.1, "useless_loss": 3.4}, "10": {"loss": 1.05, "useful_loss": 0.9}}


def example(useful: bool, number: int, **more: Any) -> dict[str, Any]:
    return {
        "query": f"query {number}",
        "question": "Where?",
        "answers": ["Paris"],
        "split": "train",
        "prediction": None,
        "documents": [{"text": f"document {number} <script>"}],
        "useful": useful,
        **more,
    }


def begun(path: Path, config: RecipeConfig) -> Path:
    with RunDir(path, config) as run:
        run.begin()
        for step in range(3):
            run.log_step(step, {"train/loss": 3.0 - step, "train/grad_norm": 1.5}, Phase.warm_start)
        searches = {"rl": {"bm25": {"calls": 77, "failures": 2, "prompt_tokens": 0, "completion_tokens": 0}}}
        run.save_progress(StageTimer(), search=searches, peak_memory_gib=3.25, roles={})
        run.finish()
    return path


def reported(path: Path, told: dict[str, Any]) -> Path:
    write_json(path / "report.json", told | account_of(RunFiles.read(path)))
    return path


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    path = begun(tmp_path / "interactions", CollectRecipeConfig())
    rows = [example(number % 2 == 0, number) for number in range(40)]
    write_json_lines(path / "examples_train.jsonl", rows)
    write_json_lines(path / "examples_held_out.jsonl", [example(True, 99, split="held_out")])
    gaps = {"episodes": 1200, "episodes_wanted": 2000, "without_documents": 5}
    counts = {"useful": 51, "useless": 17, "undecided": 3, "of_held_out_questions": 6, "searches": 77, "questions": 60}
    examples = {"train": {"useful": 20, "useless": 20}, "held_out": {"useful": 1, "useless": 0}}
    told = {"judge": "evidence", "unit": "search", "engine": "bm25", "split": "train", "seed": 4, "examples": examples}
    return reported(path, {**told, **counts, **gaps, "different_searches": 66})


@pytest.fixture
def tuning(tmp_path: Path) -> Path:
    path = begun(tmp_path / "sft", SftSimulatorRecipeConfig())
    told = {
        "seed": 4,
        "steps": 10,
        "simulator": str(path / "simulator"),
        "guards": {"skipped_updates": 1, "findings": {"loss_spike": [2, 7]}},
        "examples": {"train": 1234, "held_out": 56},
        "held_out_before": LOSSES["0"],
        "held_out_after": LOSSES["10"],
        "held_out_by_step": LOSSES,
    }
    return reported(path, told)


def test_a_collection_s_page_shows_what_became_of_its_searches_and_some_of_each_kind(collection: Path) -> None:
    page = write_preparation_page(collection).read_text()
    assert "What a policy asked BM25 over questions of the train split, judged by evidence, seed 4." in page
    assert "<dd>1,200 of 2,000: the engine refused to go on</dd>" in page
    assert "<dt>searches that found nothing</dt><dd>5</dd>" in page
    assert "66 different ones" in page and "20 useful, 20 useless" in page and "3.2 GiB" in page
    assert "judged, of held-out questions: 6" in page and "to learn from, useless: 20" in page
    # Held-out ones first; twelve of each kind.
    assert page.count('class="card episode"') == 24 and page.index("query 99") < page.index("query 0")
    assert "query 20" in page and "query 22" not in page and "query 23" in page and "query 25" not in page
    assert "<td>collection</td><td>BM25</td><td>77</td><td>2</td>" in page


def test_a_tuning_s_page_shows_its_losses_before_on_the_way_and_after(tuning: Path) -> None:
    page = write_preparation_page(tuning).read_text()
    assert '<p class="figure">1.050</p><p class="note">3.210 before</p>' in page
    assert '<p class="figure">–</p><p class="note">3.400 before</p>' in page, "not measured at the end"
    assert "step 10: held-out examples 1.05" in page and "step 2: examples of the step 1" in page
    assert "step 0: useless 3.4" in page and "1,234" in page and "56 held out" in page
    assert "<dt>loss spike</dt><dd>steps 2, 7</dd><dt>updates that were not made</dt><dd>1</dd>" in page


def test_text_of_models_and_corpora_is_escaped_and_the_page_asks_nothing_of_the_network(
    collection: Path, tuning: Path
) -> None:
    for folder in (collection, tuning):
        page = write_preparation_page(folder).read_text()
        assert "default-src 'none'" in page
        assert "<script" not in page and "src=" not in page.replace("default-src", "") and "href=" not in page
    assert "document 0 &lt;script&gt;" in (collection / "report.html").read_text()


def test_the_report_command_makes_the_page_again_and_leaves_the_report(
    collection: Path, tuning: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (collection, tuning):
        kept = (folder / "report.json").read_bytes()
        page = write_preparation_page(folder).read_bytes()
        (folder / "report.html").unlink()
        assert main([str(folder)]) == 0 and str(folder / "report.html") in capsys.readouterr().out
        assert (folder / "report.html").read_bytes() == page and (folder / "report.json").read_bytes() == kept


def test_a_collection_of_parquet_examples_has_a_page_without_them(collection: Path) -> None:
    for file in collection.glob("examples_*.jsonl"):
        file.rename(file.with_suffix(".parquet"))
    page = write_preparation_page(collection).read_text()
    assert "<h2>Examples</h2>" not in page and "20 useful, 20 useless" in page


@pytest.mark.parametrize(
    ("kind", "command"),
    [(CollectRecipeConfig, "collect_interactions"), (SftSimulatorRecipeConfig, "sft_simulator")],
)
def test_the_report_of_a_collection_or_a_fine_tuning_is_not_written_over(
    kind: type[RecipeConfig], command: str, tmp_path: Path
) -> None:
    folder = begun(tmp_path / "recorded", kind())
    write_json(folder / "report.json", {"judge": "evidence"})
    with pytest.raises(ValueError, match=rf"recorded is a run of recipes/{command}\.py"):
        write_report(folder)
    assert json.loads((folder / "report.json").read_text()) == {"judge": "evidence"}
    assert not (folder / "report.html").exists()


def test_a_run_that_is_not_done_or_of_another_recipe_is_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(begun(tmp_path / "begun", CollectRecipeConfig()))]) == 1
    assert "begun has no report.json yet" in capsys.readouterr().err
    state = json.loads((tmp_path / "begun" / "state.json").read_text())
    write_json(tmp_path / "begun" / "state.json", {**state, "recipe": "grpo"})
    with pytest.raises(ValueError, match="another kind of report"):
        write_preparation_page(tmp_path / "begun")
