"""The examples in the simulator's prompts: from training facts alone, and the right ones for a question."""

import pytest

from zs_nemo.qa import facts
from zs_nemo.qa.fact_sources import words
from zs_nemo.qa.fact_templates import TWO_HOP_KINDS
from zs_nemo.qa.facts import FactsWorld
from zs_nemo.qa.queries import QUERY_TEMPLATES, hop_queries, subject_of
from zs_nemo.search.demonstrations import Demonstrations, Step, build_demonstrations
from zs_nemo.search.simulator_prompts import noisy_prompt, useful_prompt


@pytest.fixture(scope="module")
def demonstrations(facts_world: FactsWorld) -> Demonstrations:
    return build_demonstrations(facts_world)


def all_prompts(demonstrations: Demonstrations) -> list[str]:
    """Every text that the simulator can be shown, with nothing asked."""
    prompts = [noisy_prompt(demonstrations, "", topic) for topic in demonstrations.topics]
    for group in demonstrations.groups:
        for example in (*group.first, *group.last):
            prompts.append(useful_prompt(demonstrations, example.question, example.answer, example.query))
    return prompts


def test_no_prompt_names_a_held_out_country_city_or_element(demonstrations: Demonstrations) -> None:
    splits, names = facts.split_entities(seed=0), facts.entity_names()
    held_out = {words(name) for entity in names if splits[entity] != "train" for name in names[entity]}
    for line in {line for prompt in all_prompts(demonstrations) for line in prompt.splitlines()}:
        text = f" {words(line)} "
        assert not [name for name in held_out if f" {name} " in text]


def test_every_kind_of_question_finds_the_examples_of_its_kind(
    demonstrations: Demonstrations, facts_world: FactsWorld
) -> None:
    questions = [question for split in ("train", "validation", "test") for question in facts_world.split(split)]
    right = sum(demonstrations.group_for(question.text).name == question.kind for question in questions)
    assert right / len(questions) > 0.99


def test_reasonable_queries_ask_for_their_step_and_those_of_another_question_do_not(
    demonstrations: Demonstrations, facts_world: FactsWorld
) -> None:
    wrong, other_asked, total = [], 0, 0
    for question, other in zip(facts_world.train, facts_world.train[1:] + facts_world.train[:1], strict=True):
        group = demonstrations.group_for(question.text)
        for number, queries in enumerate(hop_queries(question)):
            steps = {group.step_of(question.text, query, searched_before=number > 0) for query in queries}
            total += 1
            if steps != {(Step.first, Step.last)[number]}:
                wrong.append(question.text)
        asked = [group.step_of(question.text, query, searched_before=False) for query in hop_queries(other)[0]]
        other_asked += any(asked)
    assert len(wrong) < 0.01 * total, wrong
    assert other_asked < 0.05 * len(facts_world.train)


def test_a_name_alone_asks_only_where_a_real_engine_would_find_the_document(
    demonstrations: Demonstrations, facts_world: FactsWorld
) -> None:
    found_by_name = {"city_country", "country_of_capital", "element_of_symbol"}
    asked = {kind: set() for kind in QUERY_TEMPLATES}
    for question in facts_world.train:
        group = demonstrations.group_for(question.text)
        if question.kind in asked and question.text not in group.questions:
            step = group.step_of(question.text, subject_of(question), searched_before=False)
            asked[question.kind].add(step is not None)
    assert {kind for kind, answers in asked.items() if True in answers} == found_by_name


def test_a_query_for_another_fact_of_the_same_thing_is_not_answered(
    demonstrations: Demonstrations, facts_world: FactsWorld
) -> None:
    question = next(question for question in facts_world.train if question.kind == "discoverer")
    group, element = demonstrations.group_for(question.text), subject_of(question)
    for query in (f"chemical symbol of {element}", f"atomic number of {element}", f"chemical element {element}"):
        assert group.step_of(question.text, query, searched_before=True) is None, query
    assert group.step_of(question.text, f"who discovered {element}", searched_before=False) is Step.first


def test_examples_of_a_first_step_do_not_hold_the_answer_and_those_of_the_last_do(
    demonstrations: Demonstrations,
) -> None:
    for group in demonstrations.groups:
        assert len(group.first) == len(group.last) == 3
        assert all(words(example.answer) in words(example.document) for example in group.last)
        if group.name in TWO_HOP_KINDS:
            assert not any(words(example.answer) in words(example.document) for example in group.first)


def test_a_topic_shares_no_word_with_what_it_keeps_away_from(demonstrations: Demonstrations) -> None:
    topic = demonstrations.topics[5]
    drawn = {
        demonstrations.topic_away_from([f"capital of {topic}"], seed) for seed in range(len(demonstrations.topics))
    }
    assert topic not in drawn
    assert len(drawn) > 100
