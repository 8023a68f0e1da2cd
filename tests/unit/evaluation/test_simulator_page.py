from dataclasses import replace

from tests.unit.evaluation.test_simulator_quality import NOISY, USEFUL
from zs_nemo.evaluation.simulator_page import render_page
from zs_nemo.evaluation.simulator_quality import quality


def test_the_page_sets_simulators_side_by_side_and_shows_what_they_wrote():
    tagged = replace(USEFUL, documents=("<script>alert(1)</script> New Delhi",))
    answers = {"search": [tagged, NOISY], "baseline": [replace(USEFUL, documents=("No.",)), NOISY]}
    report = {"queries": 1, "simulators": {name: quality(records) for name, records in answers.items()}}
    page = render_page(report, answers)
    row = next(line for line in page.splitlines() if "useful documents that hold the answer" in line)
    assert row.index("1.000") < row.index("0.000")
    assert "&lt;script&gt;" in page and "<script>" not in page
    assert page.count("India has many rivers.") == 2
