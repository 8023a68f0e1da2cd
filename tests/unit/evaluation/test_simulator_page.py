import json
from dataclasses import replace
from pathlib import Path

import pytest

from recipes.report import main
from tests.unit.evaluation.test_simulator_quality import NOISY, USEFUL
from zs_nemo.evaluation.simulator_page import render_page
from zs_nemo.evaluation.simulator_quality import quality


def test_the_page_sets_simulators_side_by_side_and_shows_what_they_wrote():
    tagged = replace(USEFUL, documents=("<script>alert(1)</script> New Delhi",))
    answers = {"search": [tagged, NOISY], "baseline": [replace(USEFUL, documents=("No.",)), NOISY]}
    costs = {"search": {"usd_per_1000": 0.00512, "bought_usd_per_1000": 9.17}, "baseline": None}
    speed = {"in_flight": 96, "searches_per_s": 3.5, "failed_share": 0.0}
    measured = {name: quality(records) | {"cost": costs[name]} | speed for name, records in answers.items()}
    settings = {"model": "runs/<mine>", "served_model": "", "template": "tuned", "off_target": "withhold"}
    measured["search"]["settings"] = settings
    report = {"queries": 1, "simulators": measured}
    page = render_page(report, answers)
    row = next(line for line in page.splitlines() if "useful documents that hold the answer" in line)
    assert row.index("1.000") < row.index("0.000")
    price = next(line for line in page.splitlines() if "$ for 1,000 searches" in line)
    assert price.index("0.00512") < price.index("\N{EN DASH}"), "what has no price has a dash"
    assert "&lt;script&gt;" in page and "<script>" not in page
    assert page.count("India has many rivers.") == 2
    assert "<th>runs/&lt;mine&gt;, tuned, off_target=withhold</th><th>baseline</th>" in page
    assert "its wait among the 96 that are under way at once" in page
    speed = next(line for line in page.splitlines() if "searches a second, all together" in line)
    assert speed.count("3.500") == 2


def kept(folder: Path, served_model: str) -> str:
    settings = {"model": "package:small", "served_model": served_model, "template": ""}
    found = quality([USEFUL, NOISY]) | {"cost": None, "settings": settings}
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps({"recipe": "evaluate_simulator", "simulators": {"search": found}}))
    return str(folder)


def test_the_table_has_a_column_for_every_simulator_of_the_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folders = [kept(tmp_path / "first", ""), f"{kept(tmp_path / 'second', 'large')}/report.json"]
    assert main(["--table", *folders]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head == "| measure | package:small, our own wording | large, our own wording |"
    assert "| useful documents that hold the answer | 1.000 | 1.000 |" in rows
    assert not any("a second, all together" in row for row in rows), "an earlier version did not measure it"
    assert main(["--table", *folders, "--by", "seed"]) == 1
    assert "--by is for training runs" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    assert main(["--table", *folders, str(tmp_path / "run")]) == 1
    assert "name one kind alone" in capsys.readouterr().err
