"""The facts world: right, split without leaks, the same every time."""

import itertools
import json
import re
from pathlib import Path

import pytest

from zs_nemo.config.experiment import DataConfig
from zs_nemo.qa import facts
from zs_nemo.qa.fact_sources import contains, load_cities, load_countries, words
from zs_nemo.qa.fact_templates import QUESTION_TEMPLATES, build_facts
from zs_nemo.qa.facts import FactsWorld, load_facts_world
from zs_nemo.qa.queries import hop_queries


def training_texts(facts_world: FactsWorld) -> list[str]:
    """Everything that training may show to a model: questions, answers, evidence, queries."""
    texts = []
    for question in facts_world.train:
        texts += [question.text, *question.answers, *(facts_world.evidence[name] for name in question.evidence)]
        texts += [query for queries in hop_queries(question) for query in queries]
    return texts


def test_the_splits_have_the_sizes_asked_for_and_all_kinds(facts_world: FactsWorld) -> None:
    assert (len(facts_world.test), len(facts_world.validation)) == (320, 64)
    assert len(facts_world.train) > 1000
    for split in ("train", "validation", "test"):
        assert {question.kind for question in facts_world.split(split)} == set(QUESTION_TEMPLATES)
    ids = [question.id for split in ("train", "validation", "test") for question in facts_world.split(split)]
    assert len(ids) == len(set(ids))


def test_no_training_question_touches_an_entity_of_another_split(facts_world: FactsWorld) -> None:
    splits = facts.split_entities(seed=0)
    entities = {item.id: item.entities for item in build_facts()[0]}
    evidence = build_facts()[1]
    for split in ("train", "validation", "test"):
        for question in facts_world.split(split):
            touched = set(entities[question.id]).union(*(evidence[name].entities for name in question.evidence))
            assert {splits[entity] for entity in touched} == {split}, question.id


def test_no_training_text_names_a_held_out_country_city_or_element(facts_world: FactsWorld) -> None:
    splits, names = facts.split_entities(seed=0), facts.entity_names()
    held_out = {words(name) for entity in names if splits[entity] != "train" for name in names[entity]}
    longest = max(len(name.split()) for name in held_out)
    for text in set(training_texts(facts_world)):
        tokens = words(text).split()
        spans = {" ".join(tokens[i : i + n]) for n in range(1, longest + 1) for i in range(len(tokens) - n + 1)}
        assert not spans & held_out, (text, spans & held_out)


def test_no_training_text_holds_a_held_out_question_or_its_subject_with_its_answer(facts_world: FactsWorld) -> None:
    held_out = facts_world.test + facts_world.validation
    texts = set(training_texts(facts_world))
    assert not texts & {question.text for question in held_out}
    evidence = {facts_world.evidence[name] for question in held_out for name in question.evidence}
    assert not texts & evidence
    pairs = [(hop_queries(question)[0][0], question) for question in held_out if question.kind == "capital"]
    for (query, question), text in itertools.product(pairs, texts):
        country = query.removeprefix("capital of ")
        assert not (contains(text, country) and contains(text, question.answers[0]))


def test_every_one_hop_answer_stands_in_the_evidence(facts_world: FactsWorld) -> None:
    for split in ("train", "validation", "test"):
        for question in facts_world.split(split):
            last = facts_world.evidence[question.evidence[-1]]
            assert any(contains(last, answer) for answer in question.answers), (question.text, last)
            assert len(last.split()) <= 35


def test_the_sources_agree_with_what_everybody_knows() -> None:
    countries = {country.code: country for country in load_countries()}
    capitals = {code: countries[code].capital for code in ("FR", "JP", "AU", "BR", "CA", "EG")}
    assert capitals == {
        "FR": "Paris",
        "JP": "Tokyo",
        "AU": "Canberra",
        "BR": "Brasilia",
        "CA": "Ottawa",
        "EG": "Cairo",
    }
    assert "Washington DC" in countries["US"].capital_names
    assert not any(countries[code].capital for code in ("ZA", "BO", "LK", "NL") if code != "NL")
    assert "Japanese yen" in countries["JP"].currency_names or "Yen" in countries["JP"].currency_names


def test_a_city_name_belongs_to_one_country_alone() -> None:
    names = [city.name for city in load_cities()]
    assert len(names) == len(set(names))
    assert not {"Birmingham", "Valencia", "Cordoba"} & set(names)


def test_the_world_is_the_same_when_built_again(
    facts_world: FactsWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZS_NEMO_CACHE", str(tmp_path))
    again = load_facts_world(DataConfig())
    assert again.folder != facts_world.folder
    for name in ("questions.jsonl", "corpus.jsonl"):
        assert (again.folder / name).read_bytes() == (facts_world.folder / name).read_bytes()


def test_the_seed_changes_the_split() -> None:
    assert facts.split_entities(seed=0) != facts.split_entities(seed=1)


def test_the_corpus_holds_all_evidence_and_fifty_thousand_other_short_documents(facts_world: FactsWorld) -> None:
    rows = [json.loads(line) for line in facts_world.corpus.read_text(encoding="utf-8").splitlines()]
    texts = {row["contents"] for row in rows}
    assert set(facts_world.evidence.values()) <= texts
    assert len(texts) == len(rows) >= 50_000 + len(facts_world.evidence)
    assert len({row["id"] for row in rows}) == len(rows)
    long = [text for text in texts if len(text.split()) > 50]
    assert len(long) < len(rows) / 1000
    assert not any(re.search(r"<[a-z/]+>", text) for text in texts)


def test_more_test_questions_than_there_are_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZS_NEMO_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"data\.num_test_questions=100000 is more than"):
        load_facts_world(DataConfig(num_test_questions=100_000))
    assert not list(tmp_path.glob("facts-*"))


def test_a_missing_source_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zs_nemo.qa.fact_sources.PACKAGES", ("no-such-package",))
    with pytest.raises(ValueError, match=r"no-such-package, which is not installed; run `pip install"):
        load_facts_world(DataConfig())
