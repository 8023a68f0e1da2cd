import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from recipes.report import main
from tests.unit.observability.runs import config, finished_run
from tests.unit.observability.test_report import parsed
from zs_nemo.evaluation.side_by_side import write_side_by_side
from zs_nemo.observability.report import write_report
from zs_nemo.observability.run_dir import RunDir
from zs_nemo.observability.run_figures import FIGURE_FILES
from zs_nemo.observability.timer import StageTimer

KEPT = Path(__file__).parents[3] / "docs" / "results"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    finished_run(folder / "first")
    finished_run(folder / "second", seed=2)
    finished_run(folder / "real", engine="bm25")
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> list[Path]:
    return [shutil.copytree(made / name, tmp_path / name) for name in ("first", "second", "real")]


def rows_of(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "tables" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_self_contained_page_shows_all_runs(runs: list[Path], tmp_path: Path) -> None:
    page = write_side_by_side(tmp_path / "out", runs).read_text()
    parser = parsed(page)
    assert parser.open == []
    assert not {tag for tag, _ in parser.seen} & {"script", "link", "img", "iframe"}
    assert not [attrs for _, attrs in parser.seen if {"src", "href"} & attrs.keys()]
    assert "3 runs side by side" in page and "mean of 2" in page
    reward = next(chart for chart in page.split("<figure") if "<h3>Reward</h3>" in chart)
    assert len(re.findall("<polyline", reward)) == 3


def test_every_table_is_there_as_csv_and_latex_and_every_figure_as_svg(runs: list[Path], tmp_path: Path) -> None:
    write_side_by_side(tmp_path / "out", runs)
    names = {"results", "evaluations", "differences", "settings", "cost", "stages"}
    assert {file.stem for file in (tmp_path / "out" / "tables").glob("*.tex")} == names
    assert {file.stem for file in (tmp_path / "out" / "tables").glob("*.csv")} == names | {"curves"}
    figures = {file.stem for file in (tmp_path / "out" / "figures").glob("*.svg")}
    assert {"reward_mean", "curriculum_noise", "train_kl", "f1_bm25_greedy", "stages"} <= figures


def test_the_numbers_are_those_of_the_runs(runs: list[Path], tmp_path: Path) -> None:
    write_side_by_side(tmp_path / "out", runs)
    results = rows_of(tmp_path / "out", "results")
    assert [row["run"] for row in results] == ["first", "second", "mean of 2", "real"]
    assert (results[0]["f1_before_greedy"], results[0]["f1_after_greedy"]) == ("0.375", "0.75")
    assert results[2]["f1_after_greedy"] == "0.75" and results[2]["f1_after_greedy_low"] == ""
    curve = [row for row in rows_of(tmp_path / "out", "curves") if row["metric"] == "curriculum/noise"]
    assert [(row["run"], row["step"], row["value"]) for row in curve[:3]] == [
        ("first", "0", "0.0"),
        ("first", "1", "0.1"),
        ("first", "2", "0.2"),
    ]
    cost = rows_of(tmp_path / "out", "cost")
    assert (cost[0]["core_hours"], cost[0]["simulated_searches"]) == ("1.5", "6")
    assert [row["real_searches_in_rl"] for row in cost] == ["0", "0", "7"]


def test_only_settings_that_differ_are_listed_and_not_what_the_runs_are_called(
    runs: list[Path], tmp_path: Path
) -> None:
    write_side_by_side(tmp_path / "out", runs)
    assert rows_of(tmp_path / "out", "settings") == [{"setting": "seed", "first": "1", "second": "2", "real": "1"}]


def test_settings_that_were_not_kept_are_no_difference(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    report = json.loads((runs[0] / "report.json").read_text())
    del report["settings"], report["curves"]
    (tmp_path / "kept" / "report.json").write_text(json.dumps(report | {"seed": 5}))
    page = write_side_by_side(tmp_path / "out", [runs[0], tmp_path / "kept"]).read_text()
    known = {row["setting"]: (row["first"], row["kept"]) for row in rows_of(tmp_path / "out", "settings")}
    assert known == {"seed": ("1", "5"), "trainer.max_steps": (known["trainer.max_steps"][0], "3")}
    assert "Of these runs only seed and steps are known: kept" in page


def test_runs_are_compared_over_the_same_questions(runs: list[Path], tmp_path: Path) -> None:
    rows = runs[1] / "evaluations" / "after_bm25_greedy.jsonl"
    better = [json.loads(line) | {"em": 1.0, "published_em": 1.0, "f1": 1.0} for line in rows.read_text().splitlines()]
    rows.write_text("".join(json.dumps(row) + "\n" for row in better))
    write_side_by_side(tmp_path / "out", runs[:2])
    found = [row for row in rows_of(tmp_path / "out", "differences") if row["evaluation"] == "after_bm25_greedy"]
    f1 = next(row for row in found if row["measure"] == "F1")
    assert (f1["run"], f1["questions"], f1["difference"]) == ("second", "20", "0.25")
    assert float(f1["difference_low"]) > 0 and float(f1["p"]) == 2 / 2**5, "five of them differ"


def test_questions_whose_search_failed_are_not_compared(runs: list[Path], tmp_path: Path) -> None:
    rows = runs[1] / "evaluations" / "after_bm25_greedy.jsonl"
    first, *others = [json.loads(line) for line in rows.read_text().splitlines()]
    rows.write_text("".join(json.dumps(row) + "\n" for row in [first | {"status": "search_failed"}, *others]))
    write_side_by_side(tmp_path / "out", runs[:2])
    found = [row for row in rows_of(tmp_path / "out", "differences") if row["evaluation"] == "after_bm25_greedy"]
    assert {row["questions"] for row in found} == {"19"}


def test_questions_without_a_score_are_told_with_their_run(runs: list[Path], tmp_path: Path) -> None:
    assert "have no score" not in write_side_by_side(tmp_path / "out", runs).read_text()
    file = runs[1] / "evaluations" / "after_bm25_greedy.json"
    lost = {"num_questions": 2, "share": 0.1, "question_ids": ["q0", "q1"], "failures": {"deadline": 2}}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"unscored": lost}))
    page = write_side_by_side(tmp_path / "out", runs).read_text()
    assert "second, after_bm25_greedy: 2 questions (10.00 %) have no score" in page


def test_kept_reports_stand_beside_run_directories(runs: list[Path], tmp_path: Path) -> None:
    kept = tmp_path / "kept" / "first"
    kept.mkdir(parents=True)
    shutil.copy(runs[0] / "report.json", kept / "report.json")
    write_side_by_side(tmp_path / "out", [runs[0], kept / "report.json"])
    results, curves = rows_of(tmp_path / "out", "results"), rows_of(tmp_path / "out", "curves")
    own, other = (
        [{**row, "run": ""} for row in results if row["run"].endswith(name)]
        for name in (f"{tmp_path.name}/first", "kept/first")
    )
    assert own == other and len(own) == 1
    assert {row["run"] for row in curves} == {f"{tmp_path.name}/first", "kept/first"}


def test_the_published_results_of_the_docs_can_be_set_side_by_side(tmp_path: Path) -> None:
    folders = sorted(KEPT.glob("*_seed*"))
    page = write_side_by_side(tmp_path / "out", folders).read_text()
    results = {row["run"]: row for row in rows_of(tmp_path / "out", "results")}
    assert len(results) >= len(folders) and float(results["grpo_bm25_seed1"]["f1_after_greedy"]) == 0.6009375
    assert "Without curves" in page and parsed(page).open == []


def test_a_run_under_way_is_shown_as_far_as_it_is(runs: list[Path], tmp_path: Path) -> None:
    with RunDir(tmp_path / "begun", config(seed=3)) as run:
        run.log_step(0, {"reward/mean": 0.5})
        run.save_progress(StageTimer())
    page = write_side_by_side(tmp_path / "out", [runs[0], tmp_path / "begun"]).read_text()
    assert "Not finished: begun" in page
    assert [row["run"] for row in rows_of(tmp_path / "out", "results")] == ["first"]


def test_figures_of_other_runs_do_not_stay(runs: list[Path], tmp_path: Path) -> None:
    figures = tmp_path / "out" / "figures"
    write_side_by_side(tmp_path / "out", runs)
    for name in ("critic_explained_variance", "f1_web_greedy", "f1_web_temperature_0.5"):
        (figures / f"{name}.svg").write_text("<svg/>")
    write_side_by_side(tmp_path / "out", runs[2:])
    assert not {file.stem for file in figures.iterdir()} & {
        "critic_explained_variance",
        "f1_web_greedy",
        "f1_web_temperature_0.5",
    }
    assert {row["run"] for row in rows_of(tmp_path / "out", "stages")} == {"real"}


def test_files_that_others_put_beside_the_tables_and_figures_stay(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    theirs = [out / "tables" / "mine.tex", out / "tables" / "notes", out / "figures" / "method.svg", out / "paper.tex"]
    for file in theirs:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    for _ in range(2):
        write_side_by_side(out, runs[:1])
        assert [file.read_text() for file in theirs] == ["mine"] * len(theirs)


@pytest.mark.parametrize("name", ["tables/results.csv", "figures/stages.svg"])
def test_a_file_of_somebody_elses_is_not_written_over(name: str, runs: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(ValueError, match=f"{name} is there already.*give a folder of its own"):
        write_side_by_side(tmp_path / "out", runs[:1])
    assert [each for each in (tmp_path / "out").rglob("*") if each.is_file()] == [file]
    assert file.read_text() == "mine"


def test_every_figure_has_a_name_by_which_it_is_known_as_ours(runs: list[Path], tmp_path: Path) -> None:
    write_side_by_side(tmp_path / "out", runs)
    figures = list((tmp_path / "out" / "figures").iterdir())
    assert len(figures) > 5
    assert all(any(figure.match(pattern) for pattern in FIGURE_FILES) for figure in figures)


def test_names_and_texts_of_runs_never_become_markup(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "<b>bold")
    page = write_side_by_side(tmp_path / "out", [run]).read_text()
    assert "<b>bold" not in page and "&lt;b&gt;bold" in page


@pytest.mark.parametrize(
    ("kept", "told"),
    [("{", "is not JSON"), ("[]", "is not the report of a run"), ('{"recipe": "grpo"}', "is not the report of a run")],
)
def test_what_is_no_report_is_refused_by_name(
    kept: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / "report.json").write_text(kept)
    assert main(["--side-by-side", str(tmp_path / "out"), str(folder)]) == 1
    assert f"report.json {told}" in capsys.readouterr().err


@pytest.mark.parametrize("case", ["twice", "nothing", "into a run"])
def test_impossible_requests_are_refused(
    case: str, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments: dict[str, tuple[Any, list[Any], str]] = {
        "twice": (tmp_path / "out", [runs[0], runs[0]], "is given twice"),
        "nothing": (tmp_path / "out", [tmp_path / "nothing"], "nothing is no run directory"),
        "into a run": (runs[0], [runs[1]], "is a run directory; give a folder of its own"),
    }
    folder, given, told = arguments[case]
    assert main(["--side-by-side", str(folder), *map(str, given)]) == 1
    assert told in capsys.readouterr().err


def test_a_report_that_was_kept_is_not_changed_by_being_read(runs: list[Path], tmp_path: Path) -> None:
    before = (runs[0] / "report.json").read_bytes()
    write_side_by_side(tmp_path / "out", runs)
    write_report(runs[0])
    assert (runs[0] / "report.json").read_bytes() == before
