"""The account of a run, and the published sums, against values worked out by hand."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.observability.runs import config, finished_run
from zs_nemo.config.cost import CostConfig
from zs_nemo.observability.cost import PUBLISHED, SimulatorPlan, account, simulator_account
from zs_nemo.observability.report import RunFiles, build_report
from zs_nemo.observability.run_dir import RunDir
from zs_nemo.observability.timer import StageTimer

PRICES = CostConfig(usd_per_gpu_hour=2.0, usd_per_core_hour=0.1, usd_per_1000_searches=10.0)
SEARCHES = {"simulator": {"calls": 2000, "failures": 9, "prompt_tokens": 3e6, "completion_tokens": 1e6}}
TRAINING = {"held_gpu_s": 7200.0, "busy_gpu_s": 3600.0}
SIMULATOR = {"held_gpu_s": 3600.0, "busy_gpu_s": 900.0, "requests": 10, "prompt_tokens": 5, "completion_tokens": 6}

PLAN = SimulatorPlan(
    num_searches=64_000,
    completion_tokens=250,
    tokens_per_gpu_s=1887.31,
    num_gpus=1,
    run_hours=12,
    usd_per_gpu_hour=1.475,
)


def of(engines=SEARCHES, sessions=({"training": TRAINING, "simulator": SIMULATOR},), prices=PRICES):
    return account(engines, sessions, prices, simulated={"simulator"})


def test_the_published_sums_follow_from_their_inputs() -> None:
    assert f"{PUBLISHED.searches_usd:.1f}0" == "586.70"
    assert f"{PUBLISHED.simulator_usd:.2f}" == "70.80"
    assert (PUBLISHED.num_searches, PUBLISHED.num_gpus) == (64_000, 4)
    assert 1 - PUBLISHED.simulator_usd / PUBLISHED.searches_usd == pytest.approx(0.88, abs=0.005)


def test_the_published_sums_are_those_of_the_default_prices() -> None:
    prices = CostConfig()
    gpus = {"held_gpu_s": 4 * 12 * 3600.0, "busy_gpu_s": 0.0}
    simulated = of({"simulator": {"calls": 64_000}}, [{"simulator": gpus}], prices)["simulated"]
    assert simulated["usd"] == pytest.approx(PUBLISHED.simulator_usd)
    assert simulated["bought_usd"] == pytest.approx(PUBLISHED.searches_usd)
    assert simulated["saved_share"] == pytest.approx(0.8793, abs=1e-4)


def test_one_gpu_with_enough_requests_in_flight_costs_under_half_of_the_published_simulator() -> None:
    # 64,000 searches of 250 tokens at 1,887.31 tokens/s.
    assert PLAN.busy_gpu_hours == pytest.approx(2.355, abs=1e-3)
    assert PLAN.held_gpu_hours == pytest.approx(14.355, abs=1e-3)
    assert PLAN.usd == pytest.approx(21.17, abs=0.01)
    assert PLAN.busy_usd == pytest.approx(3.47, abs=0.01)
    longest = replace(PLAN, completion_tokens=600)
    assert longest.usd == pytest.approx(26.04, abs=0.01)
    assert longest.usd < PUBLISHED.simulator_usd / 2


@pytest.mark.parametrize(
    ("changed", "usd", "under_half"),
    [
        ({"tokens_per_gpu_s": 1887.31 / 2}, 24.65, True),
        ({"tokens_per_gpu_s": 1887.31 / 4}, 31.59, True),
        ({"tokens_per_gpu_s": 1887.31 / 2, "completion_tokens": 600}, 34.37, True),
        ({"tokens_per_gpu_s": 1887.31 / 4, "completion_tokens": 600}, 51.05, False),
        ({"num_gpus": 2}, 38.87, False),
        ({"reused_share": 0.25}, 20.31, True),
        ({"num_runs": 2}, 12.32, True),
    ],
)
def test_the_variations_of_the_page_come_to_its_sums(changed: dict[str, float], usd: float, under_half: bool) -> None:
    plan = replace(PLAN, **changed)
    assert plan.usd == pytest.approx(usd, abs=0.01)
    assert (plan.usd < PUBLISHED.simulator_usd / 2) is under_half


def test_under_half_holds_down_to_a_fifth_of_the_throughput() -> None:
    limit = replace(PLAN, tokens_per_gpu_s=64_000 * 250 / (12 * 3600))
    assert limit.usd == pytest.approx(PUBLISHED.simulator_usd / 2)
    assert limit.tokens_per_gpu_s < PLAN.tokens_per_gpu_s / 5


@pytest.mark.parametrize("hours", [3.0, 6.0, 24.0])
def test_under_half_holds_however_the_published_sum_splits_into_hours_and_price(hours: float) -> None:
    plan = replace(PLAN, run_hours=hours, usd_per_gpu_hour=PUBLISHED.simulator_usd / PUBLISHED.num_gpus / hours)
    assert plan.usd == pytest.approx(PUBLISHED.simulator_usd * (hours + PLAN.busy_gpu_hours) / (4 * hours))
    assert plan.usd < PUBLISHED.simulator_usd / 2


def test_reuse_saves_work_and_several_runs_share_what_is_held() -> None:
    reusing = replace(PLAN, reused_share=0.25)
    assert reusing.busy_gpu_hours == pytest.approx(0.75 * PLAN.busy_gpu_hours)
    assert reusing.held_gpu_hours == pytest.approx(12 + 0.75 * PLAN.busy_gpu_hours)
    two = replace(PLAN, num_runs=2)
    assert two.usd == pytest.approx((12 + 2 * PLAN.busy_gpu_hours) * 1.475 / 2)
    assert two.busy_usd == pytest.approx(PLAN.busy_usd)


@pytest.mark.parametrize(
    "wrong", [{"tokens_per_gpu_s": 0}, {"num_gpus": 0}, {"num_runs": 0}, {"reused_share": 1.5}, {"num_searches": -1}]
)
def test_a_plan_of_impossible_numbers_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(PLAN, **wrong)


def test_roles_are_priced_by_what_they_hold_and_by_their_work() -> None:
    cost = of()
    assert (cost["roles"]["training"]["usd"], cost["roles"]["training"]["busy_usd"]) == (4.0, 2.0)
    assert (cost["roles"]["simulator"]["usd"], cost["roles"]["simulator"]["busy_usd"]) == (2.0, 0.5)
    assert cost["roles"]["simulator"]["busy_share"] == 0.25
    assert cost["run_usd"] == 6.0


def test_simulated_searches_stand_beside_the_same_ones_bought() -> None:
    assert of()["simulated"] == {
        "searches": 2000,
        "usd": 2.0,
        "usd_per_1000": 1.0,
        "busy_usd_per_1000": 0.25,
        "idle_usd": 1.5,
        "reused_searches": 0,
        "reused_usd": 0.0,
        "bought_usd": 20.0,
        "bought_usd_per_1000": 10.0,
        "saved_share": 0.9,
    }


def test_sessions_add_up_also_when_one_had_gpus_and_the_other_had_none() -> None:
    on_cpu = {"simulator": {"held_core_s": 7200.0, "busy_core_s": 3600.0, "requests": 1}}
    role = of(sessions=[{"simulator": SIMULATOR}, on_cpu])["roles"]["simulator"]
    assert role["usd"] == pytest.approx(2.0 + 0.2)
    assert role["requests"] == 11
    assert role["busy_share"] == pytest.approx((900 + 3600) / (3600 + 7200))


def test_a_simulator_at_an_endpoint_is_paid_by_the_token() -> None:
    prices = replace(PRICES, usd_per_million_prompt_tokens=0.5, usd_per_million_completion_tokens=2.0)
    cost = of(sessions=[{"training": TRAINING}], prices=prices)
    assert cost["endpoint_usd"] == pytest.approx(3 * 0.5 + 1 * 2.0)
    assert cost["run_usd"] == pytest.approx(4.0 + 3.5)
    assert cost["simulated"]["usd_per_1000"] == pytest.approx(1.75)
    held = of(prices=prices)
    assert held["endpoint_usd"] == 0.0, "an engine that the run holds is paid by the hour alone"


def test_a_simulator_whose_endpoint_counts_no_tokens_has_no_price_that_is_known() -> None:
    prices = replace(PRICES, usd_per_million_prompt_tokens=0.5, usd_per_million_completion_tokens=2.0)
    cost = of({"simulator": {"calls": 10}}, [{"training": TRAINING}], prices)
    assert cost["endpoint_usd"] is None and cost["run_usd"] is None and cost["simulated"]["usd"] is None
    assert simulator_account({"calls": 10}, {}, prices)["usd"] is None
    answered_before = of({"simulator": {"calls": 10, "cached": 10}}, [{"training": TRAINING}], prices)
    assert answered_before["endpoint_usd"] == 0.0


def test_a_model_that_holds_nothing_is_paid_by_the_token_as_far_as_its_servers_count_them() -> None:
    prices = replace(PRICES, usd_per_million_prompt_tokens=0.5, usd_per_million_completion_tokens=2.0)
    asked = {"requests": 10, "prompt_tokens": 4_000_000, "completion_tokens": 500_000}
    sessions = [{"training": TRAINING, "judge": asked}, {"judge": asked}]
    cost = of({"bm25": {"calls": 10}}, sessions, prices)
    assert cost["roles"]["judge"]["usd"] == pytest.approx(2 * (4 * 0.5 + 0.5 * 2.0))
    assert cost["run_usd"] == pytest.approx(4.0 + 6.0)
    assert of({}, sessions)["roles"]["judge"]["usd"] is None, "without a price"
    unsaid = of({}, [{"judge": {"requests": 10}}], prices)
    assert unsaid["roles"]["judge"]["usd"] is None and unsaid["run_usd"] is None


def test_answers_that_were_shared_or_kept_are_worth_the_work_that_they_saved() -> None:
    engines = {"simulator": {**SEARCHES["simulator"], "shared": 300, "cached": 100}}
    simulated = of(engines)["simulated"]
    assert simulated["reused_searches"] == 400
    # 1,600 searches took work for $0.50.
    assert simulated["reused_usd"] == pytest.approx(0.5 * 400 / 1600)


def test_web_searches_are_bought_and_a_local_index_is_not() -> None:
    cost = of({"web": {"calls": 500}, "bm25": {"calls": 9000}}, [{"training": TRAINING}])
    assert cost["bought"] == {"searches": 500, "usd": 5.0}
    assert cost["run_usd"] == 9.0
    assert cost["simulated"] is None


@pytest.mark.parametrize(
    ("without", "engines"),
    [
        ("usd_per_gpu_hour", SEARCHES),
        ("usd_per_1000_searches", {"web": {"calls": 5}}),
    ],
)
def test_a_price_of_zero_is_not_known_and_makes_no_sum(without: str, engines) -> None:
    cost = of(engines, prices=replace(PRICES, **{without: 0.0}))
    assert cost["run_usd"] is None
    assert of(engines)["run_usd"] is not None


def test_an_endpoint_without_a_price_makes_no_sum() -> None:
    cost = of(sessions=[{"training": TRAINING}])
    assert cost["endpoint_usd"] is None and cost["run_usd"] is None
    assert cost["simulated"]["saved_share"] is None


def test_the_report_of_a_run_has_its_cost_and_its_page_shows_it(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    cost = build_report(RunFiles.read(run))["cost"]
    assert cost["prices"]["usd_per_core_hour"] == 0.0425
    assert cost["roles"]["training"]["usd"] == pytest.approx(0.0425)
    assert cost["run_usd"] == pytest.approx(0.0425 * 1.5)
    assert cost["simulated"]["usd_per_1000"] == pytest.approx(1000 * 0.02125 / 6)
    page = (run / "report.html").read_text()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    assert "training 1.00 core-h 50% – $0.043" in text
    assert "simulator 0.50 core-h 25% 70 / 28 $0.021" in text
    assert "the run $0.064" in text
    assert "simulated $0.021 $3.54 $0.89" in text
    assert "bought $0.055 $9.17 –" in text


def test_a_run_of_an_earlier_version_has_no_roles_and_no_sum(tmp_path: Path) -> None:
    with RunDir(tmp_path / "run", config()) as run:
        run.save_progress(StageTimer(), search={"rl": {"simulator": {"calls": 3, "failures": 0}}})
    settings = tmp_path / "run" / "config.yaml"
    settings.write_text(re.sub(r"(?ms)^cost:\n(?:  .*\n)+", "", settings.read_text()))
    assert "usd_per" not in settings.read_text()
    cost = build_report(RunFiles.read(tmp_path / "run"))["cost"]
    assert (cost["roles"], cost["run_usd"]) == ({}, None)
    assert cost["simulated"]["usd"] is None and cost["simulated"]["bought_usd"] > 0


def test_prices_may_change_when_a_run_is_resumed(tmp_path: Path) -> None:
    RunDir(tmp_path, config()).close()
    dearer = config()
    dearer.cost = CostConfig(usd_per_gpu_hour=3.0)
    RunDir(tmp_path, dearer).close()
    assert "usd_per_gpu_hour: 3.0" in (tmp_path / "config.yaml").read_text()
