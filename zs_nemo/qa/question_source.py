"""The questions of a run: what it trains on and what it is examined on, from the sets that ``data`` names."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from zs_nemo.config.experiment import DataConfig
from zs_nemo.qa.facts import FactsWorld
from zs_nemo.qa.rewards import normalise
from zs_nemo.qa.sets.loading import load_set
from zs_nemo.qa.sets.mixture import interleave, mix, sample
from zs_nemo.qa.sets.reference import Place, parse_reference
from zs_nemo.qa.sets.rows import BadRow, SkipBudget
from zs_nemo.types.question import Question


@dataclass(frozen=True, kw_only=True)
class QuestionSource:
    """Questions by what they are for.

    In ``train`` a question may be there more than once, when its set has more weight than questions. The others begin
    with a fair sample of their sets, however few of them are asked.
    """

    train: list[Question]
    validation: list[Question]
    test: list[Question]
    skipped: tuple[BadRow, ...] = ()
    """Rows that were left out within ``data.max_skipped_rows``."""

    def split(self, name: str) -> list[Question]:
        """Return the questions of ``train``, ``validation`` or ``test``."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


def load_questions(data: DataConfig, world: FactsWorld, say: Callable[[str], None] = lambda _: None) -> QuestionSource:
    """Return the questions of a run.

    ``say`` is told what takes time, which rows are left out, and how many questions are examined on that are trained on
    in the same words: published sets overlap a little, and which of them is to go is not ours to choose.

    Raises ``ValueError`` for a set that is unknown, cannot be had, is empty or has too many bad rows; for questions
    with the same identifier; for one that is both trained and tested on; and for training questions that are graded by
    regular expressions.
    """
    budget = SkipBudget(data.max_skipped_rows)
    known: dict[str, list[Question]] = {}

    def load(texts: Sequence[str], role: str) -> list[list[Question]]:
        for text in texts:
            if text not in known:
                known[text] = _load(text, role, world, budget, say)
        return [known[text] for text in texts]

    train, validation, test = load(data.train, "train"), load(data.validation, "validation"), load(data.test, "test")
    for setting, sets in (("data.train", train), ("data.validation", validation), ("data.test", test)):
        _check_unique(setting, sets)
    _check_trainable(train)
    train, test = _drawn(train, data.train, data.train_counts, data), _drawn(test, data.test, data.test_counts, data)
    source = QuestionSource(
        train=mix(train, data.train_weights, data.seed),
        validation=interleave(validation),
        test=interleave(test),
        skipped=tuple(budget.skipped),
    )
    _check_held_out(source)
    for split in ("validation", "test"):
        if shared := _asked_in_training(source, split):
            say(shared)
    return source


def load_test_questions(
    data: DataConfig, world: FactsWorld, say: Callable[[str], None] = lambda _: None, *, limit: int = 0
) -> list[Question]:
    """Return the questions of ``data.test`` by turns, at most ``limit`` of each set unless that is 0.

    A sample is drawn as ``data.test_counts`` draws one. Raises ``ValueError`` as ``load_questions`` does.
    """
    budget = SkipBudget(data.max_skipped_rows)
    sets = [_load(text, "test", world, budget, say) for text in data.test]
    _check_unique("data.test", sets)
    counts = [min(limit, len(questions)) for questions in sets] if limit else data.test_counts
    return interleave(_drawn(sets, data.test, counts, data))


def _load(text: str, role: str, world: FactsWorld, budget: SkipBudget, say: Callable[[str], None]) -> list[Question]:
    reference = parse_reference(text)
    if reference.place is Place.facts:
        return world.split(reference.split)
    return load_set(reference, budget, default_split=role, say=say)


def _drawn(
    sets: Sequence[list[Question]], texts: Sequence[str], counts: Sequence[int], data: DataConfig
) -> list[list[Question]]:
    if not counts:
        return list(sets)
    return [sample(each, count, data.seed, text) for each, count, text in zip(sets, counts, texts, strict=True)]


def _check_unique(setting: str, sets: Iterable[Sequence[Question]]) -> None:
    seen: set[str] = set()
    for questions in sets:
        own = {question.id for question in questions}
        if shared := sorted(own & seen):
            raise ValueError(
                f"{setting}: {len(shared)} questions are in two of its sets under the same identifier, such as "
                f"{shared[0]}; name the set once, or rename the file of the one that is another set"
            )
        seen |= own


def _check_trainable(sets: Iterable[Sequence[Question]]) -> None:
    for questions in sets:
        for question in questions:
            if question.answers_are_patterns:
                raise ValueError(
                    f"data.train holds {question.id}, whose gold answers are regular expressions: no simulator can "
                    "write a document for them, and they have no F1; take the set for data.test alone"
                )


def _check_held_out(source: QuestionSource) -> None:
    trained = {question.id for question in source.train}
    for split in ("validation", "test"):
        shared = [question.id for question in source.split(split) if question.id in trained]
        if shared:
            raise ValueError(
                f"data.train and data.{split} share {len(shared)} questions, such as {shared[0]}; examine on questions "
                "that are not trained on"
            )


def _asked_in_training(source: QuestionSource, split: str) -> str:
    """Return what to say of the questions of ``split`` that are trained on under another identifier; empty for none.

    Identifiers tell sets and splits apart, so that a copy in another one has its own. Case, punctuation, articles and
    white space make no difference.
    """
    # A set with more weight than questions is there more than once.
    asked = {normalise(question.text): question for question in {each.id: each for each in source.train}.values()}
    examined = source.split(split)
    shared = [(question, asked[words]) for question in examined if (words := normalise(question.text)) in asked]
    if not shared:
        return ""
    question, trained = shared[0]
    return (
        f"data.train asks {len(shared)} of the {len(examined)} questions of data.{split} in the same words, such as "
        f"{question.id} ({trained.id}): {question.text!r}; scores on those are not of unseen questions"
    )
