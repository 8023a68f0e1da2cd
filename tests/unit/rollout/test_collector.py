"""Many episodes at once: order, keys, concurrency and budgets."""

import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest

from tests.fakes import CharTokenizer, FixedSearch, ScriptedEngine
from zs_nemo.observability.metrics import step_metrics
from zs_nemo.qa.prompts import policy_prompt
from zs_nemo.rollout.callbacks import EngineSearch, SimulatedSearch
from zs_nemo.rollout.collector import (
    DeadlineBudgetExceeded,
    Decoding,
    RolloutCollector,
    SearchBudgetExceeded,
    StepBudgets,
    check_prompts_fit,
    questions_of_step,
)
from zs_nemo.rollout.episode import EpisodeLimits, EpisodeRunner, SearchSetting
from zs_nemo.rollout.rewards import f1
from zs_nemo.rollout.search_call import MAX_EMPTY_ANSWERS
from zs_nemo.types.generation import Completion, SamplingParams
from zs_nemo.types.question import Question
from zs_nemo.types.search import SearchFailureKind
from zs_nemo.types.trajectory import Status

LIMITS = EpisodeLimits(
    max_turns=2, max_turn_tokens=60, max_document_tokens=80, max_sequence_tokens=800, search_deadline_s=0.2
)
BUDGETS = StepBudgets(failed=0.1)
QUESTIONS = [
    Question(id=f"q{i}", text=f"Question {i}?", answers=(f"answer {i}",), kind="k", split="train") for i in range(6)
]


def script(prompt: str) -> str:
    """Search, then answer with the number of the question."""
    number = prompt.split("Question: Question ")[1].split("?")[0]
    return f"<answer>answer {number}</answer>" if "Doc 1:" in prompt else "<search>find</search>"


def build(
    policy: ScriptedEngine,
    concurrency: int = 64,
    *,
    limits: EpisodeLimits = LIMITS,
    budgets: StepBudgets = BUDGETS,
) -> RolloutCollector:
    """Return a collector around a scripted policy."""
    runner = EpisodeRunner(policy, CharTokenizer(), limits)
    return RolloutCollector(runner, CharTokenizer(), f1, run_seed=7, max_concurrency=concurrency, budgets=budgets)


def setting(search: FixedSearch, noise: float = 0.0) -> SearchSetting:
    """Return a simulated search setting over a fixed engine."""
    return SearchSetting(callback=SimulatedSearch(search), num_documents=1, noise_probability=noise)


def collect(policy: ScriptedEngine, search: FixedSearch, noise: float = 0.0, step: int = 4):
    """Collect one step of groups of two."""
    collector = build(policy)
    try:
        return collector.collect(QUESTIONS, setting(search, noise), Decoding(temperature=1.0), step=step, group_size=2)
    finally:
        collector.close()


def test_groups_come_in_the_order_of_their_questions_and_are_graded_against_their_own_answers():
    groups = collect(
        ScriptedEngine(script, delay_s=lambda prompt: 0.02 if "Question 0" in prompt else 0.0), FixedSearch()
    )
    assert [group.question.id for group in groups] == [question.id for question in QUESTIONS]
    assert all(group.rewards == [1.0, 1.0] for group in groups)


def test_seeds_and_coins_do_not_depend_on_the_order_in_which_episodes_run():
    def observe(delays):
        policy, search = ScriptedEngine(script, delay_s=delays), FixedSearch()
        groups = collect(policy, search, noise=0.5)
        seeds = [[turn.sampling_seed for turn in t.turns] for g in groups for t in g.trajectories]
        coins = [t.turns[0].result.noisy for g in groups for t in g.trajectories]
        return seeds, coins

    forward = observe(lambda prompt: 0.0)
    scrambled = observe(lambda prompt: (hash(prompt) % 7) / 500)
    assert forward == scrambled
    assert len({seed for seeds in forward[0] for seed in seeds}) == 24
    assert 0 < sum(forward[1]) < 12


def test_an_episode_does_not_wait_for_the_others_between_turns():
    slow = 0.15
    policy = ScriptedEngine(script, delay_s=lambda prompt: slow if prompt.endswith("Question 0?\n") else 0.0)
    order: list[str] = []
    collector = build(policy)
    started = time.monotonic()
    collector.collect(
        QUESTIONS,
        setting(FixedSearch()),
        Decoding(temperature=1.0),
        step=0,
        group_size=1,
        on_done=lambda trajectory: order.append(trajectory.question.id),
    )
    collector.close()
    assert order[-1] == "q0"
    assert time.monotonic() - started < 2 * slow


def test_too_many_failed_searches_stop_the_step():
    told = r"rollout\.search_max_failure_share.*The last failure: unavailable: not yet"
    with pytest.raises(SearchBudgetExceeded, match=told):
        collect(ScriptedEngine(script), FixedSearch(failures=10**6))


@pytest.mark.parametrize(("max_turns", "asked"), [(2, 4), (3, 5)])
def test_a_step_stops_as_soon_as_its_searches_cannot_keep_within_their_budget(max_turns: int, asked: int) -> None:
    """Of six episodes half of the searches may fail: with one search each three, with two each perhaps four."""
    policy, search = (
        ScriptedEngine(script, delay_s=lambda prompt: 0.005),
        FixedSearch(failures=99, failure_kind=SearchFailureKind.missing),
    )
    limits = replace(LIMITS, max_turns=max_turns)
    collector = build(policy, concurrency=1, limits=limits, budgets=StepBudgets(failed=0.5))
    with pytest.raises(SearchBudgetExceeded, match=f"{asked} of {asked} search calls failed"):
        collector.collect(QUESTIONS, setting(search), Decoding(temperature=1.0), step=0, group_size=1)
    collector.close()
    assert len(search.requests) == asked


@pytest.mark.parametrize(("max_empty_share", "stops"), [(0.5, False), (0.2, True)])
def test_a_simulator_that_wrote_nothing_has_a_budget_of_its_own(max_empty_share, stops):
    collector = RolloutCollector(
        EpisodeRunner(ScriptedEngine(script), CharTokenizer(), LIMITS),
        CharTokenizer(),
        f1,
        run_seed=7,
        max_concurrency=1,
        budgets=StepBudgets(failed=0.0, empty=max_empty_share),
    )
    # The first of three questions asks for nothing that can be answered, as often as it may.
    search = FixedSearch(failures=MAX_EMPTY_ANSWERS, failure_kind=SearchFailureKind.empty)
    setting = SearchSetting(callback=EngineSearch(search), num_documents=1)
    told = r"for 1 of 1 search calls the simulator wrote nothing.*rollout\.search_max_empty_share=0\.2"
    with pytest.raises(SearchBudgetExceeded, match=told) if stops else nullcontext():
        groups = collector.collect(QUESTIONS[:3], setting, Decoding(temperature=1.0), step=0, group_size=1)
        assert [len(group.trajectories) for group in groups] == [0, 1, 1]
    collector.close()


def test_a_group_goes_on_without_the_trajectory_whose_search_failed():
    hasty = replace(LIMITS, search_deadline_s=0.0001)
    collector = RolloutCollector(
        EpisodeRunner(ScriptedEngine(script), CharTokenizer(), hasty),
        CharTokenizer(),
        f1,
        run_seed=7,
        max_concurrency=1,
        budgets=StepBudgets(failed=0.5),
    )
    search = FixedSearch(failures=1)
    flaky = SearchSetting(callback=EngineSearch(search), num_documents=1)
    groups = collector.collect(QUESTIONS[:2], flaky, Decoding(temperature=1.0), step=0, group_size=2)
    collector.close()
    assert [len(group.trajectories) for group in groups] == [1, 2]


def test_a_further_round_has_no_budget_of_its_own_but_the_rest_of_the_steps():
    policy = ScriptedEngine(script, delay_s=lambda prompt: 60.0 if "Question 5" in prompt else 0.0)
    hasty = replace(LIMITS, trajectory_deadline_s=0.1)
    collector = build(policy, limits=hasty, budgets=StepBudgets(failed=0.1, late=0.25))
    collect = partial(collector.collect, search=setting(FixedSearch()), decoding=Decoding(temperature=1.0), step=0)
    assert len(collect(QUESTIONS[:5], group_size=1)) == 5
    (lost,) = collect(QUESTIONS[5:], group_size=1, first_prompt=6)
    assert [item.status for item in lost.lost] == [Status.deadline]
    with pytest.raises(DeadlineBudgetExceeded, match="2 of 7"):
        collect(QUESTIONS[5:], group_size=1, first_prompt=12)
    collect(QUESTIONS[:1], group_size=1)
    collector.close()


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_a_step_goes_on_without_trajectories_past_their_deadline_up_to_a_share(share: float):
    policy = ScriptedEngine(script, delay_s=lambda prompt: 60.0 if prompt.endswith("Question 0?\n") else 0.0)
    collector = RolloutCollector(
        EpisodeRunner(policy, CharTokenizer(), replace(LIMITS, trajectory_deadline_s=0.1)),
        CharTokenizer(),
        f1,
        run_seed=7,
        max_concurrency=8,
        budgets=StepBudgets(failed=0.1, late=share),
    )
    many = SearchSetting(callback=EngineSearch(FixedSearch()), num_documents=1)
    allowed = share > 1 / 3
    with nullcontext() if allowed else pytest.raises(DeadlineBudgetExceeded, match=r"2 of 6 .*max_deadline_share=0.2"):
        groups = collector.collect(QUESTIONS[:3], many, Decoding(temperature=1.0), step=0, group_size=2)
    collector.close()
    if allowed:
        assert [len(group.trajectories) for group in groups] == [0, 2, 2]
        assert [item.status for item in groups[0].lost] == [Status.deadline] * 2
        metrics = step_metrics(groups, [])
        assert metrics["rollout/lost_deadline"] == 2 and metrics["rollout/episodes"] == 4


def test_the_questions_of_a_step_are_a_function_of_seed_and_step():
    steps = [questions_of_step(QUESTIONS, step, 4, run_seed=1) for step in range(6)]
    assert steps[4] == questions_of_step(QUESTIONS, 4, 4, run_seed=1)
    seen = [question.id for step in steps for question in step]
    for epoch in range(4):
        assert sorted(seen[epoch * 6 : epoch * 6 + 6]) == sorted(question.id for question in QUESTIONS)
    assert seen[:6] != seen[6:12]
    assert seen[:4] != [q.id for q in questions_of_step(QUESTIONS, 0, 4, run_seed=2)]


def test_a_prompt_that_does_not_fit_is_refused_with_the_setting_to_change():
    long = Question(id="long", text="x" * 900, answers=("a",), kind="k", split="train")
    with pytest.raises(ValueError, match=r"rollout\.max_sequence_tokens=800 .*'long'"):
        check_prompts_fit([long], CharTokenizer(), LIMITS)


def test_short_prompts_are_not_encoded_to_see_that_they_fit():
    class NeverAsked(CharTokenizer):
        def encode(self, text, *, add_special_tokens=True):
            assert "Question: Question" not in text
            return super().encode(text)

    check_prompts_fit(QUESTIONS, NeverAsked(), LIMITS)
    edge = LIMITS.max_sequence_tokens - LIMITS.max_turn_tokens - len(policy_prompt(""))
    fits = replace(QUESTIONS[0], id="fits", text="x" * edge)
    check_prompts_fit([fits], CharTokenizer(), LIMITS)
    with pytest.raises(ValueError, match="'too long'"):
        check_prompts_fit([replace(fits, id="too long", text="x" * (edge + 1))], CharTokenizer(), LIMITS)


def test_prompts_of_a_further_round_have_draws_of_their_own():
    seeds = []
    for first_prompt in (0, 6):
        policy = ScriptedEngine(script)
        collector = build(policy)
        groups = collector.collect(
            QUESTIONS,
            setting(FixedSearch()),
            Decoding(temperature=1.0),
            step=0,
            group_size=2,
            first_prompt=first_prompt,
        )
        collector.close()
        assert [group.question.id for group in groups] == [question.id for question in QUESTIONS]
        assert groups[0].trajectories[0].key.prompt == first_prompt
        seeds.append({seed for _, _, seed in policy.calls})
    assert not seeds[0] & seeds[1]


def test_streams_have_orders_of_their_own():
    first = questions_of_step(QUESTIONS, 0, 6, run_seed=1)
    assert first != questions_of_step(QUESTIONS, 0, 6, run_seed=1, stream="another")


def test_what_ends_an_engine_ends_the_rollout_as_it_is() -> None:
    """A run is restarted, saved or ended with the right exit code by the type of this error and what it came from."""
    failure = RuntimeError("policy-engine-0 failed")
    failure.__cause__ = OSError("its process died")

    class Dead(ScriptedEngine):
        async def generate(self, prompt_ids: list[int], sampling: SamplingParams, seed: int) -> Completion:
            raise failure

    with pytest.raises(RuntimeError) as raised:
        build(Dead(script)).collect(QUESTIONS, setting(FixedSearch()), Decoding(temperature=1.0), step=0, group_size=2)
    assert raised.value is failure and isinstance(failure.__cause__, OSError)
