"""Steps that go wrong are found, and what is configured is decided."""

import pytest

from tests.unit.observability.runs import config
from zs_nemo.config.guards import GuardConfig, OnBadUpdate, OnCollapse
from zs_nemo.observability.config_file import changed_settings, to_yaml
from zs_nemo.observability.guards import Guards, Verdict, gravest

GOOD = {
    "train/ratio_max": 1.3,
    "train/entropy": 0.5,
    "train/generation_mismatch": 0.01,
    "rollout/response_tokens": 40.0,
}
MADE, SKIPPED = {"num_skipped_updates": 0.0}, {"num_skipped_updates": 1.0}
LIMITS = {
    "max_ratio": 2.0,
    "min_entropy": 0.1,
    "min_response_tokens": 10,
    "min_searches_per_episode": 0.3,
    "max_generation_mismatch": 0.05,
}


def test_a_good_step_has_no_finding_and_limits_of_zero_are_off():
    assert Guards(GuardConfig(**LIMITS)).findings(GOOD) == []
    wild = {**GOOD, "train/ratio_max": 1e9, "train/entropy": 0.0, "rollout/response_tokens": 0.0}
    assert Guards(GuardConfig()).findings(wild) == []
    assert gravest([]) is Verdict.go_on


@pytest.mark.parametrize(
    ("metric", "value", "name"),
    [
        ("train/ratio_max", 2.5, "max_ratio"),
        ("train/entropy", 0.05, "min_entropy"),
        ("rollout/response_tokens", 4.0, "min_response_tokens"),
        ("rollout/searches_per_episode", 0.1, "min_searches_per_episode"),
        ("train/generation_mismatch", 0.2, "max_generation_mismatch"),
    ],
)
def test_each_limit_is_watched_and_named(metric, value, name):
    (finding,) = Guards(GuardConfig(on_collapse=OnCollapse.rollback, **LIMITS)).findings({**GOOD, metric: value})
    assert finding.name == name and finding.verdict is Verdict.roll_back
    assert f"guards.{name}=" in finding.message and metric in finding.message


def test_an_engine_that_samples_from_another_distribution_than_the_trained_one_raises_an_alarm_unasked():
    (finding,) = Guards(GuardConfig()).findings({**GOOD, "train/generation_mismatch": 0.3})
    assert finding.name == "max_generation_mismatch" and finding.verdict is Verdict.go_on
    assert "guards.max_generation_mismatch=0.2" in finding.message
    assert Guards(GuardConfig(max_generation_mismatch=0)).findings({**GOOD, "train/generation_mismatch": 0.3}) == []


def test_a_metric_that_a_step_does_not_have_is_no_collapse():
    assert Guards(GuardConfig(**LIMITS)).findings({"rollout/response_tokens": 30.0}) == []


@pytest.mark.parametrize(
    ("policy", "verdict"),
    [(OnBadUpdate.skip, Verdict.go_on), (OnBadUpdate.rollback, Verdict.roll_back), (OnBadUpdate.stop, Verdict.stop)],
)
def test_a_skipped_update_has_the_configured_consequence(policy, verdict):
    findings = Guards(GuardConfig(on_bad_update=policy)).findings(GOOD, [MADE, SKIPPED])
    assert [finding.name for finding in findings] == ["bad_update"]
    assert gravest(findings) is verdict


def test_skipping_one_update_after_another_ends_the_run():
    guards = Guards(GuardConfig(max_skipped_in_a_row=3))
    assert gravest(guards.findings(GOOD, [SKIPPED])) is Verdict.go_on
    assert gravest(guards.findings(GOOD, [SKIPPED])) is Verdict.go_on
    assert guards.findings(GOOD, [MADE]) == []
    assert gravest(guards.findings(GOOD, [SKIPPED])) is Verdict.go_on
    assert gravest(guards.findings(GOOD, [SKIPPED])) is Verdict.go_on
    findings = guards.findings(GOOD, [SKIPPED])
    assert gravest(findings) is Verdict.stop
    assert "smaller policy.optim.lr" in findings[-1].message


@pytest.mark.parametrize(
    ("steps", "ends"),
    [
        ([[SKIPPED, MADE, SKIPPED, MADE, SKIPPED]], False),
        ([[MADE, SKIPPED, SKIPPED], [MADE, SKIPPED]], False),
        ([[MADE, SKIPPED, SKIPPED], [SKIPPED, MADE]], True),
        ([[MADE, SKIPPED, SKIPPED, SKIPPED, MADE]], True),
    ],
)
def test_the_updates_of_a_step_count_in_the_order_in_which_they_were_made(steps, ends):
    guards = Guards(GuardConfig(max_skipped_in_a_row=3))
    verdicts = [gravest(guards.findings(GOOD, updates)) for updates in steps]
    assert verdicts == [Verdict.go_on] * (len(steps) - ends) + [Verdict.stop] * ends


def test_a_critic_that_goes_on_learning_does_not_excuse_a_policy_whose_updates_are_all_skipped():
    for group, updates in {"policy": ([SKIPPED], [MADE]), "critic": ([MADE], [SKIPPED])}.items():
        guards = Guards(GuardConfig(max_skipped_in_a_row=3))
        verdicts = [gravest(guards.findings(GOOD, *updates)) for _ in range(3)]
        assert verdicts == [Verdict.go_on, Verdict.go_on, Verdict.stop]
        # A step without an update, for want of groups to compare, ends no row.
        (*_, finding) = guards.findings(GOOD, *(made if SKIPPED in made else [] for made in updates))
        assert f"4 updates of the {group} in a row" in finding.message
        assert f"smaller {group}.optim.lr" in finding.message


def test_the_remedy_for_skipped_updates_is_one_that_a_run_which_keeps_its_settings_allows():
    guards = Guards(GuardConfig(max_skipped_in_a_row=1))
    (*_, finding) = guards.findings(GOOD, [SKIPPED])
    slower = config()
    slower.policy.optim.lr /= 10
    assert changed_settings(to_yaml(config()), slower)
    assert "start another run (exp_manager.name)" in finding.message and "recipes/export.py" in finding.message


def test_the_critic_s_updates_are_watched_as_well():
    assert Guards(GuardConfig()).findings(GOOD, [MADE], [SKIPPED])
