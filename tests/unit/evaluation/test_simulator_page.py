from dataclasses import replace

from tests.unit.evaluation.test_simulator_quality import NOISY, USEFUL
from zs_nemo.evaluation.simulator_page import render_page
from zs_nemo.evaluation.simulator_quality import quality


def test_the_page_sets_simulators_side_by_side_and_shows_what_they_wrote():
    tagged = replace(USEFUL, documents=("<script>alert(1)</script> New Delhi",))
    answers = {"search": [tagged, NOISY], "baseline": [replace(USEFUL, documents=("No.",)), NOISY]}
    costs = {"search": {"usd_per_1000": 0.00512, "bought_usd_per_1000": 9.17}, "baseline": None}
    measured = {name: quality(records) | {"cost": costs[name]} for name, records in answers.items()}
    report = {"queries": 1, "simulators": measured}
    page = render_page(report, answers)
    row = next(line for line in page.splitlines() if "useful documents that hold the answer" in line)
    assert row.index("1.000") < row.index("0.000")
    price = next(line for line in page.splitlines() if "$ for 1,000 searches" in line)
    assert price.index("0.00512") < price.index("\N{EN DASH}"), "what has no price has a dash"
    assert "&lt;script&gt;" in page and "<script>" not in page
    assert page.count("India has many rivers.") == 2
