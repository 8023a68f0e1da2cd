"""From the name of a set to its questions."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zs_nemo.qa.sets.forms import COLUMNS, Form, RawQuestion, RowError, detect_form, read_row
from zs_nemo.qa.sets.hub import hub_files
from zs_nemo.qa.sets.pyserini_wheel import topic_file, topic_rows
from zs_nemo.qa.sets.reference import FACTS, SPLITS, Place, SetReference
from zs_nemo.qa.sets.rows import BadRow, Row, SkipBudget, read_rows
from zs_nemo.types.question import Question

PATTERN_SETS = frozenset({"curatedtrec"})
"""Sets of the wheel whose gold answers are regular expressions."""
Say = Callable[[str], None]


@dataclass(kw_only=True)
class _Loaded:
    """Questions as they come out of one set."""

    questions: list[Question] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    """Identifier -> where it was first."""
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    """(set, split) -> rows so far: the number of a row that has none of its own."""

    def add(self, place: str, raw: RawQuestion, reference: SetReference, default_split: str, patterns: bool) -> None:
        """Give the row an identifier and keep it, unless that is taken."""
        name = raw.name or reference.name
        split = raw.split or reference.split or default_split
        position = self.counts.get((name, split), 0)
        self.counts[name, split] = position + 1
        identifier = f"{name}/{split}/{raw.number or f'{position:04d}'}"
        if name in ("", FACTS):
            raise ValueError(
                f"{reference.text}: its questions cannot be told from others by the name {name!r}; name the file after "
                "the set, such as nq_test.jsonl"
            )
        if identifier in self.places:
            reason = f"has the identifier {identifier} that {self.places[identifier]} has already"
            self.bad.append(BadRow(place=place, reason=reason))
            return
        self.places[identifier] = place
        self.questions.append(
            Question(
                id=identifier,
                text=raw.text,
                answers=raw.answers,
                kind=name,
                split=SPLITS[split],
                answers_are_patterns=patterns,
            )
        )


def load_set(reference: SetReference, budget: SkipBudget, *, default_split: str, say: Say) -> list[Question]:
    """Return the questions of one set that is not the facts world's, in the order of the rows.

    ``default_split`` is that of a file that does not say. Raises ``ValueError`` for a set that cannot be had, that is
    empty, or that has more bad rows than ``budget`` allows.
    """
    assert reference.place is not Place.facts, "the facts world is built, not loaded"
    patterns = reference.place is Place.wheel and reference.name in PATTERN_SETS
    loaded = _Loaded()
    for rows in _parts(reference, say):
        form: Form | None = None
        for row in rows:
            if isinstance(row, BadRow):
                loaded.bad.append(row)
                continue
            form = form or detect_form(row.values.keys(), row.place)
            try:
                loaded.add(row.place, read_row(form, row.values, patterns=patterns), reference, default_split, patterns)
            except RowError as error:
                loaded.bad.append(BadRow(place=row.place, reason=str(error)))
    budget.skip(loaded.bad, reference.text)
    for bad in loaded.bad:
        say(f"left out {bad}")
    if not loaded.questions:
        raise ValueError(f"the set {reference.text!r} holds no question; name another set or file")
    return loaded.questions


def _parts(reference: SetReference, say: Say) -> Iterable[Iterable[Row | BadRow]]:
    """Return the rows of every file of the set."""
    if reference.place is Place.wheel:
        return [topic_rows(topic_file(reference.name, reference.split, say))]
    return [read_rows(path, COLUMNS) for path in _files(reference)]


def _files(reference: SetReference) -> Sequence[Path]:
    if reference.place is Place.hub:
        return hub_files(reference)
    return [Path(reference.text).expanduser()]
