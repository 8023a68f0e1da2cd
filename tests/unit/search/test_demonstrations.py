"""The examples in the simulator's prompts: from training facts alone, and the right ones for a question."""

import pytest

from zs_nemo.qa import facts
from zs_nemo.qa.fact_sources import words
from zs_nemo.qa.fact_templates import TWO_HOP_KINDS
from zs_nemo.qa.facts import FactsWorld
from zs_nemo.qa.queries import hop_queries
from zs_nemo.search.demonstrations import Demonstrations, build_demonstrations
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


def test_reasonable_queries_ask_about_their_question_and_those_of_another_do_not(
    demonstrations: Demonstrations, facts_world: FactsWorld
) -> None:
    one_hop = [question for question in facts_world.train if question.kind not in TWO_HOP_KINDS]
    asked = other_asked = 0
    for question, other in zip(one_hop, one_hop[1:] + one_hop[:1], strict=True):
        group = demonstrations.group_for(question.text)
        asked += all(group.asks_about(question.text, query) for query in hop_queries(question)[0])
        other_asked += any(group.asks_about(question.text, query) for query in hop_queries(other)[0])
    assert asked / len(one_hop) > 0.99
    assert other_asked / len(one_hop) < 0.05


def test_the_query_tells_the_first_step_from_the_last(demonstrations: Demonstrations, facts_world: FactsWorld) -> None:
    two_hop = [question for question in facts_world.train if question.kind in TWO_HOP_KINDS]
    wrong = []
    for question in two_hop:
        group = demonstrations.group_for(question.text)
        if question.text in group.questions:
            continue
        first, last = hop_queries(question)
        wrong += [query for query in first if not group.is_first_step(question.text, query)]
        wrong += [query for query in last if group.is_first_step(question.text, query)]
    assert len(wrong) < 0.02 * 6 * len(two_hop), wrong


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
