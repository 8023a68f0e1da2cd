"""Scripted episodes: the form of a real episode, from training facts alone."""

import pytest

from zs_nemo.qa.actions import AnswerAction, SearchAction, parse_action
from zs_nemo.qa.facts import FactsWorld
from zs_nemo.qa.queries import HOPS
from zs_nemo.qa.rewards import exact_match
from zs_nemo.qa.warm_start import scripted_episode
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.trajectory import Role


def key(prompt: int) -> SampleKey:
    return SampleKey(run_seed=1, step=0, prompt=prompt, member=0)


def test_every_training_question_makes_an_episode_that_ends_in_its_answer(facts_world: FactsWorld) -> None:
    for number, question in enumerate(facts_world.train):
        segments = scripted_episode(question, facts_world, key(number))
        roles = [role for _, role in segments]
        searches = len(segments) // 2
        assert roles == [Role.policy, Role.document] * searches + [Role.policy]
        assert searches - (2 if question.kind in HOPS else 1) in (0, 1)
        actions = [parse_action(text) for text, role in segments if role is Role.policy]
        assert all(isinstance(action, SearchAction) for action in actions[:-1])
        assert isinstance(actions[-1], AnswerAction)
        assert exact_match(actions[-1].answer, question.answers) == 1.0


def test_the_documents_are_the_evidence_in_the_order_of_the_steps(facts_world: FactsWorld) -> None:
    for number, question in enumerate(facts_world.train[:300]):
        documents = [
            text for text, role in scripted_episode(question, facts_world, key(number)) if role is Role.document
        ]
        places = [
            next(place for place, text in enumerate(documents) if facts_world.evidence[name] in text)
            for name in question.evidence
        ]
        assert places == sorted(places)


def test_some_episodes_meet_an_unhelpful_document_and_search_again_in_other_words(facts_world: FactsWorld) -> None:
    retried = 0
    for number, question in enumerate(facts_world.train):
        segments = scripted_episode(question, facts_world, key(number))
        queries = [a.query for t, r in segments if r is Role.policy and isinstance(a := parse_action(t), SearchAction)]
        assert len(set(queries)) == len(queries)
        retried += len(queries) > len(question.evidence)
    assert 0.2 < retried / len(facts_world.train) < 0.3


def test_an_episode_repeats_with_its_key_and_varies_with_it(facts_world: FactsWorld) -> None:
    question = facts_world.train[0]
    assert scripted_episode(question, facts_world, key(1)) == scripted_episode(question, facts_world, key(1))
    episodes = {"".join(text for text, _ in scripted_episode(question, facts_world, key(i))) for i in range(20)}
    assert len(episodes) > 5


def test_a_held_out_question_is_refused(facts_world: FactsWorld) -> None:
    with pytest.raises(ValueError, match="scripted episodes use training questions"):
        scripted_episode(facts_world.test[0], facts_world, key(0))
