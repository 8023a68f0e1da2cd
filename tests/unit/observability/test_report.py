import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from recipes.report import main
from tests.unit.observability.runs import config, finished_run, rows
from zs_nemo.config.recipe import PpoRecipeConfig
from zs_nemo.config.reward import RewardConfig
from zs_nemo.config.search import SimulatedSearchConfig
from zs_nemo.evaluation.scores import EvaluationName, summarise
from zs_nemo.observability.faults import FaultKind
from zs_nemo.observability.report import search_summary, write_report
from zs_nemo.observability.results_table import results_table
from zs_nemo.observability.run_dir import RunDir
from zs_nemo.observability.timer import StageTimer

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Balance(HTMLParser):
    """Collects the tags that are open, and every tag and attribute seen."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(page: str) -> Balance:
    parser = Balance()
    parser.feed(page)
    return parser


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return finished_run(tmp_path / "quickstart", document="<script>alert(1)</script> <think>x</think>")


def test_the_report_holds_what_the_design_promises(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    assert report["recipe"] == "grpo"
    assert (report["seed"], report["steps"], report["finished"]) == (1, 3, True)
    assert report["wall_s"] > 0
    entry = report["evaluation"]["after_bm25_temperature_1"]
    promised = {"engine", "decoding", "n", "em", "em_ci95", "f1", "f1_ci95", "searches_per_question"}
    assert promised <= entry.keys()
    assert (entry["engine"], entry["decoding"], entry["n"]) == ("bm25", "temperature_1", 20)
    assert entry["f1"] == 0.75
    assert entry["gain"]["f1"] == pytest.approx(0.375)
    assert report["search"]["real_engine_searches_in_rl"] == 0
    assert report["search"]["phases"]["rl"]["simulator"]["calls"] == 6
    assert report["search"]["engines"]["bm25"]["calls"] == 80
    assert report["integrity"] == {"token_in_token_out_share": 1.0, "unread_searches": 0.0}
    assert report["peak_memory_gib"] == 8.5
    assert report["cost"]["simulator_tokens"] == {"simulator": 84}
    assert report["cost"]["prices"]["usd_per_1000_searches"] == pytest.approx(9.1667, abs=1e-4)
    assert report["versions"]["torch"]


def test_an_engine_that_is_not_the_simulator_counts_as_real_with_its_failures() -> None:
    counts = {"rl": {"simulator": {"calls": 9, "failures": 1}, "my_index": {"calls": 2, "failures": 3}}}
    assert search_summary(counts)["real_engine_searches_in_rl"] == 5


def test_searches_that_nobody_recorded_are_unknown_and_not_zero() -> None:
    assert search_summary(None)["real_engine_searches_in_rl"] is None
    assert search_summary({})["real_engine_searches_in_rl"] == 0


def test_the_page_is_whole_and_asks_nothing_of_the_network(run: Path) -> None:
    page = (run / "report.html").read_text()
    parser = parsed(page)
    assert parser.open == []
    tags = {tag for tag, _ in parser.seen}
    assert not tags & {"script", "link", "img", "iframe", "object"}
    assert not [attrs for _, attrs in parser.seen if {"src", "href", "onload", "onclick"} & attrs.keys()]
    assert "url(" not in page and "@import" not in page


def test_the_page_shows_who_sat_where_and_names_the_timeline(run: Path) -> None:
    assert "Who sat where" not in (run / "report.html").read_text()
    with RunDir(run, config()) as opened:
        opened.write_placement("policy 2 ranks\n┌─────┐\n│ a<b │\n└─────┘\n")
    write_report(run)
    page = (run / "report.html").read_text()
    assert parsed(page).open == []
    assert "Who sat where" in page and "│ a&lt;b │\n└─────┘" in page
    assert "<code>timeline.json</code>" in page
    (run / "timeline.json").unlink()
    write_report(run)
    assert "timeline.json" not in (run / "report.html").read_text()


def test_text_of_models_and_corpora_is_escaped(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_the_page_shows_scores_curves_and_whole_episodes(run: Path) -> None:
    page = (run / "report.html").read_text()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page))
    assert "0.375 → 0.750" in text
    assert "+0.375 [" in text
    assert "Early: step 0" in text and "Late: step 2" in text
    for title in ("Reward", "Noise", "Searches", "Length", "KL", "Entropy", "Time by stage"):
        assert f"<h3>{title}</h3>" in page
    for role in ("prompt", "policy", "document", "notice"):
        assert f'<i class="swatch {role}">' in page
    assert page.count('<div class="segment policy"') == 8


def test_a_finished_runs_report_can_be_rebuilt_byte_for_byte(run: Path) -> None:
    old = [(run / name).read_bytes() for name in ("report.json", "report.html")]
    for name in ("report.json", "report.html"):
        (run / name).unlink()
    assert main([str(run)]) == 0
    assert [(run / name).read_bytes() for name in ("report.json", "report.html")] == old


def test_a_run_that_was_broken_off_has_a_report_that_says_so(tmp_path: Path) -> None:
    with RunDir(tmp_path / "run", config()) as run_dir:
        from zs_nemo.observability.timer import StageTimer

        run_dir.save_progress(StageTimer())
    report = write_report(tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert report["finished"] is False
    assert report["search"]["real_engine_searches_in_rl"] is None
    assert "has not finished" in page
    assert parsed(page).open == []


def test_a_number_that_json_cannot_hold_is_a_gap_in_the_page(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rows[-1]["train/kl"] = None
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_report(run)
    assert "nan" not in (run / "report.html").read_text()


def test_a_folder_that_is_no_run_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nothing")]) == 1
    assert "nothing is no run directory" in capsys.readouterr().err


def test_what_the_guards_did_is_in_report_and_page(tmp_path: Path) -> None:
    path = tmp_path / "guarded"
    with RunDir(path, config()) as run:
        run.log_step(0, {"train/num_skipped_updates": 0.0})
        run.log_step(1, {"train/num_skipped_updates": 1.0, "guards/bad_update": 1.0})
        run.log_step(2, {"train/num_skipped_updates": 0.0, "guards/min_entropy": 1.0})
        run.record_rollback(step=2, to_step=2, reasons=["train/entropy is 0.01, below guards.min_entropy=0.1"])
        run.log_step(2, {"train/num_skipped_updates": 0.0})
    with RunDir(path, config()) as resumed:
        assert [event["step"] for event in resumed.rollbacks] == [2]
    report = write_report(path)
    assert report["guards"]["skipped_updates"] == 1
    assert report["guards"]["findings"] == {"bad_update": [1]}
    assert report["guards"]["rollbacks"][0]["to_step"] == 2
    page = (path / "report.html").read_text()
    assert "below guards.min_entropy=0.1" in page and "1 updates were not made" in page
    parsed(page)


def test_the_faults_that_a_run_has_survived_are_in_report_and_page(tmp_path: Path) -> None:
    path = tmp_path / "hurt"
    with RunDir(path, config()) as run:
        run.faults.record(FaultKind.engine_lost, role="policy-engine-1", host="node7", reason="its process died")
        run.log_step(0, {"rollout/lost_deadline": 2.0} | run.faults.metrics())
        run.save_state()
    with RunDir(path, config()) as resumed:
        resumed.faults.record(FaultKind.ranks_lost, role="policy-rank-0", host="node7", reason="its process died")
        assert resumed.faults.metrics() == {"faults/engine_lost_total": 1.0, "faults/ranks_lost_total": 1.0}
        resumed.save_state()
    report = write_report(path)
    assert (report["faults"]["engine_restarts"], report["faults"]["group_restarts"]) == (1, 1)
    assert report["faults"]["lost_episodes"] == {"deadline": 2, "search_failed": 0}
    page = (path / "report.html").read_text()
    assert "policy-engine-1 on node7" in page and "2 episodes passed their deadline" in page
    parsed(page)


def test_a_run_with_a_critic_shows_what_its_values_explain(tmp_path: Path) -> None:
    path = tmp_path / "ppo"
    with RunDir(path, PpoRecipeConfig(search=SimulatedSearchConfig())) as run:
        for step, value in enumerate((-0.5, 0.2, 0.4)):
            run.log_step(step, {"critic/explained_variance": value})
        run.save_progress(StageTimer())
    report = write_report(path)
    assert (report["recipe"], report["critic"]) == ("ppo", {"explained_variance": 0.4})
    without = finished_run(tmp_path / "grpo", seed=7, engine="bm25")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in results_table([path, without]).splitlines()
    ]
    assert [row[-1] for row in rows] == ["explained variance", "---", "–", "0.40"]
    assert "explained variance" in (path / "report.html").read_text()


def test_the_table_holds_every_run_and_the_mean_of_an_engine(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "again")
    real = finished_run(tmp_path / "real", seed=7, engine="bm25")
    lines = results_table([real, run, tmp_path / "again"]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(row) for row in cells}) == 1
    assert [row[:3] for row in cells[2:]] == [
        ["GRPO", "bm25", "7"],
        ["GRPO", "simulator", "1"],
        ["GRPO", "simulator", "1"],
        ["**GRPO**", "**simulator**", "**mean of 2**"],
    ]
    assert cells[3][4].startswith("0.375 [") and "→ 0.750 [" in cells[3][4]
    assert cells[5][4] == "**0.375 → 0.750**"
    assert [row[-1] for row in cells[2:4]] == ["7", "0"]
    assert cells[2][-2] == "8.5 GiB"


def test_questions_without_a_score_are_told_in_page_and_table(run: Path, tmp_path: Path) -> None:
    lossy = finished_run(tmp_path / "lossy")
    name = EvaluationName(when="after", engine="bm25", temperature=0.0)
    first, *others = rows([1.0, 0.0, 1.0])
    summary = summarise([replace(first, status="deadline"), *others], name, baseline=rows([0.0, 0.5, 1.0]))
    with RunDir(lossy, config()) as opened:
        opened.write_evaluation(str(name), summary, [], step=3)
    report = write_report(lossy)
    assert report["evaluation"][str(name)]["unscored"]["num_questions"] == 1
    page = (lossy / "report.html").read_text()
    assert "after_bm25_greedy: 1 questions (33.33 %) have no score" in page and "such as q0." in page
    table = [line.strip("| ").split(" | ") for line in results_table([run, lossy]).splitlines()]
    assert [row[-1] for row in table[:4]] == ["without a score", "---", "0 → 0", "0 → 1"]
    assert "without a score" not in results_table([run]) and "have no score" not in (run / "report.html").read_text()


def test_a_run_of_before_unscored_questions_were_counted_can_be_shown(tmp_path: Path) -> None:
    path = finished_run(tmp_path / "run")
    for file in (path / "evaluations").glob("*.json"):
        summary = json.loads(file.read_text())
        del summary["unscored"]
        file.write_text(json.dumps(summary))
    write_report(path)
    assert "have no score" not in (path / "report.html").read_text()
    assert "without a score" not in results_table([path])


def test_a_run_with_another_temperature_and_reward_is_told_by_those(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = config()
    cfg.reward = RewardConfig(f1=0.5, exact_match=1.0)
    with RunDir(tmp_path / "run", cfg) as run:
        run.log_step(0, {"reward/mean": 0.5})
        for when, values in (("before", [0.0, 0.5]), ("after", [0.5, 1.0])):
            name = EvaluationName(when=when, engine="bm25", temperature=0.7)
            run.write_evaluation(str(name), summarise(rows(values), name, baseline=rows([0.0, 0.5])), [], step=0)
        run.save_progress(StageTimer())
        write_report(run.path)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "F1 on BM25, sampled at temperature 0.7" in page and "Not evaluated yet" not in page
    assert "Mean over the step&#39;s episodes: 0.5 f1 + exact_match." in page and "token F1 of the answer" not in page
    assert main([str(tmp_path / "run"), "--table"]) == 0
    head, _, line = capsys.readouterr().out.splitlines()
    assert head.split(" | ")[3:5] == ["F1, T = 0.7", "EM, T = 0.7"] and "0.250 [" in line and "→ 0.750 [" in line


def test_the_table_averages_over_runs_that_differ_in_the_seed_and_not_in_a_named_setting(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, curriculum in (("again", "published"), ("constant", "constant"), ("empty", ""), ("also_empty", "")):
        (tmp_path / name).mkdir()
        report = json.loads((run / "report.json").read_text())
        report["settings"]["curriculum"]["name"] = curriculum
        (tmp_path / name / "report.json").write_text(json.dumps(report))
    runs = [str(run), *(str(tmp_path / name) for name in ("again", "constant", "empty", "also_empty"))]
    assert main([*runs, "--table", "--by", "curriculum.name"]) == 0
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert len({len(row) for row in cells}) == 1
    assert [row[2:4] for row in cells] == [
        ["`curriculum.name`", "seed"],
        ["---", "---"],
        ['""', "1"],
        ['""', "1"],
        ['**""**', "**mean of 2**"],
        ["constant", "1"],
        ["published", "1"],
        ["published", "1"],
        ["**published**", "**mean of 2**"],
    ]
    # There, and without a value in all of them.
    assert main([runs[-1], "--table", "--by", "curriculum.constant_noise"]) == 0
    assert main([*runs, "--table", "--by", "curriculum.nme"]) == 1
    assert "--by curriculum.nme: none of the runs has this setting" in capsys.readouterr().err
