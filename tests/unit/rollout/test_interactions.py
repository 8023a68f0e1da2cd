from dataclasses import replace

from tests.unit.observability.runs import searching
from zs_nemo.rollout.interactions import Judged, interactions_of, select, split_of
from zs_nemo.types.interaction import HELD_OUT, TRAIN, Interaction
from zs_nemo.types.search import Document


def one():
    (found,) = interactions_of(searching(), outcome=0.5, held_out_share=0.0)
    return found


def test_every_search_that_was_answered_is_recorded_with_its_own_question():
    trajectory = searching()
    found = one()
    assert found.query == trajectory.turns[0].query and found.documents == trajectory.turns[0].result.documents
    assert (found.question, found.answers) == (trajectory.question.text, trajectory.question.answers)
    assert (found.outcome, found.prediction, found.turn, found.split) == (0.5, trajectory.answer, 0, TRAIN)
    answered, nothing = trajectory.turns[0], replace(trajectory.turns[0].result, documents=())
    trajectory.turns = [replace(answered, result=nothing), answered, replace(answered, result=None)]
    recorded = interactions_of(trajectory, outcome=None, held_out_share=0.0)
    assert [(each.turn, len(each.documents), each.outcome) for each in recorded] == [(0, 0, None), (1, 1, None)]
    assert [Interaction.from_row(each.to_row()) for each in recorded] == recorded


def test_a_question_is_in_one_part_and_the_parts_have_their_shares():
    names = [f"facts/{number}" for number in range(2000)]
    held_out = [name for name in names if split_of(name, 0.1) == HELD_OUT]
    assert 150 < len(held_out) < 250
    assert all(split_of(name, 0.2) == HELD_OUT for name in held_out), "a larger share only adds questions"
    assert {split_of(name, 0.0) for name in names} == {TRAIN}


def judged(query: str, useful: bool, split: str = TRAIN) -> Judged:
    return Judged(interaction=replace(one(), query=query, split=split), useful=useful)


def queries(kept: list[Judged], *, useful: bool) -> set[str]:
    return {item.interaction.query for item in kept if item.useful is useful}


def test_equal_searches_count_once_and_contested_ones_not_at_all():
    found = [judged("a", True), judged("a", True), judged("b", True), judged("b", False), judged("c", False)]
    kept = select(found, balance=False)
    assert (queries(kept, useful=True), queries(kept, useful=False), len(kept)) == ({"a"}, {"c"}, 2)


def test_the_kinds_are_balanced_within_each_part():
    found = [judged(f"u{n}", True) for n in range(5)] + [judged(f"n{n}", False) for n in range(2)]
    found += [judged("h", True, HELD_OUT), judged("i", False, HELD_OUT), judged("j", False, HELD_OUT)]
    kept = select(found, balance=True)
    counts = {(item.interaction.split, item.useful): 0 for item in kept}
    for item in kept:
        counts[item.interaction.split, item.useful] += 1
    assert counts == {(TRAIN, True): 2, (TRAIN, False): 2, (HELD_OUT, True): 1, (HELD_OUT, False): 1}
    assert select(found[::-1], balance=True) == kept, "the order in which episodes end decides nothing"


def test_useless_documents_of_queries_that_brought_a_useful_one_stay_before_those_of_queries_beside_the_point():
    """What a wrong query brings answers that query: a simulator that is told the query alone would learn to answer."""

    def document(query: str, text: str, useful: bool) -> Judged:
        search = replace(one(), query=query, documents=(Document(text=text),))
        return Judged(interaction=search, useful=useful)

    beside = [document(f"capital of land {n}", f"The capital of land {n} is Town {n}.", False) for n in range(9)]
    found = [document(f"u{n}", "It helps.", True) for n in range(3)] + beside
    found += [document(f"u{n}", "It does not.", False) for n in range(2)]
    kept = select(found, balance=True)
    useless = queries(kept, useful=False)
    assert {"u0", "u1"} < useless and len(useless) == 3
    assert queries(kept, useful=True) == {"u0", "u1", "u2"}
