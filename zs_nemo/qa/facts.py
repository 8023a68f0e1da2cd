"""The facts world: questions about real countries, cities and elements, split by entity, with a corpus to search.

The split is by entity: a country (with its capital, cities and currency) or an element belongs to one split, and a
question whose facts touch entities of two splits is dropped. So a held-out fact appears in training in no form: not
directly, not inversely, not as a hop, and not in the examples of a prompt, which are built from training questions.
Countries whose names contain each other (Guinea, Guinea-Bissau) go into the same split.
"""

import hashlib
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from zs_nemo.config.cache import cache_folder
from zs_nemo.config.experiment import DataConfig
from zs_nemo.qa.corpus import distractors
from zs_nemo.qa.fact_sources import City, load_cities, load_countries, load_elements, package_versions, words
from zs_nemo.qa.fact_templates import Evidence, FactQuestion, build_facts, country_id, element_id
from zs_nemo.types.question import Question

SPLIT_SHARES = {"test": 0.3, "validation": 0.1, "train": 0.6}
MAX_TRAIN_QUESTIONS_PER_KIND = 160
_CODE_VERSION = 2
"""Raise it when the same packages and settings make other questions or documents than before."""


@dataclass(frozen=True, kw_only=True)
class FactsWorld:
    """Questions by split, the evidence, and the corpus on disk."""

    train: list[Question]
    validation: list[Question]
    test: list[Question]
    evidence: dict[str, str]
    """Text of the evidence documents by identifier. For training, only look up what training questions name."""
    corpus: Path
    """JSON lines of {"id", "contents"}: the evidence of all splits and the distractors."""
    folder: Path
    """Where the world is cached."""

    def split(self, name: str) -> list[Question]:
        """Return the questions of ``train``, ``validation`` or ``test``."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


def load_facts_world(data: DataConfig) -> FactsWorld:
    """Return the facts world of these settings; build it on the first call.

    The same packages and settings give the same questions and documents on every machine.
    """
    if data.source != "facts":
        raise ValueError(f"data.source={data.source!r} is unknown; the only question source is data.source=facts")
    settings = [package_versions(), data.seed, data.num_test_questions, data.num_validation_questions, _CODE_VERSION]
    name = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=6).hexdigest()
    folder = cache_folder() / f"facts-{name}"
    if not folder.is_dir():
        _write_atomically(folder, data)
    return _read(folder)


def split_entities(seed: int) -> dict[str, str]:
    """Return the split of every country and element."""
    countries = [_shuffled(cluster_countries(), seed), [[element_id(e.symbol)] for e in load_elements()]]
    groups = [countries[0], _shuffled(countries[1], seed)]
    splits: dict[str, str] = {}
    for clusters in groups:
        total, seen = sum(map(len, clusters)), 0
        bounds = [("test", SPLIT_SHARES["test"]), ("validation", SPLIT_SHARES["test"] + SPLIT_SHARES["validation"])]
        for cluster in clusters:
            name = next((split for split, bound in bounds if seen < bound * total), "train")
            splits.update(dict.fromkeys(cluster, name))
            seen += len(cluster)
    return splits


@lru_cache(maxsize=1)
def cluster_countries() -> list[list[str]]:
    """Return the countries grouped so that no name of one group stands inside a name of another."""
    names = {entity: {words(name) for name in own} for entity, own in entity_names().items()}
    texts = {entity: f" {' | '.join(own)} " for entity, own in names.items()}
    countries = [entity for entity in names if entity.startswith("country:")]
    groups = {entity: {entity} for entity in countries}
    for one in countries:
        for other in countries:
            if groups[one] is not groups[other] and any(f" {name} " in texts[other] for name in names[one]):
                groups[one] |= groups[other]
                groups.update(dict.fromkeys(groups[other], groups[one]))
    unique = {id(group): sorted(group) for group in groups.values()}
    return sorted(unique.values())


@lru_cache(maxsize=1)
def entity_names() -> dict[str, tuple[str, ...]]:
    """Return the names by which a text could speak of an entity: a country's, its capital's and its cities'."""
    names = {country_id(c.code): (c.name, *c.names, *c.capital_names) for c in load_countries()}
    cities: dict[str, list[City]] = defaultdict(list)
    for city in load_cities():
        cities[country_id(city.country)].append(city)
    for entity, group in cities.items():
        names[entity] += tuple(name for city in group for name in (city.name, *city.names))
    return names | {element_id(e.symbol): e.names for e in load_elements()}


def _shuffled(clusters: Iterable[list[str]], seed: int) -> list[list[str]]:
    return sorted(clusters, key=lambda cluster: _draw(f"{seed}/split/{cluster[0]}"))


def _draw(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def _assign(questions: Iterable[FactQuestion], splits: dict[str, str]) -> dict[str, list[Question]]:
    """Sort the questions into splits; one that touches several splits is dropped."""
    assigned: dict[str, list[Question]] = {split: [] for split in SPLIT_SHARES}
    for item in questions:
        touched = {splits[entity] for entity in item.entities}
        if len(touched) == 1:
            split = touched.pop()
            question = Question(
                id=item.id, text=item.text, answers=item.answers, kind=item.kind, split=split, evidence=item.evidence
            )
            assigned[split].append(question)
    return assigned


def _stratified(questions: Sequence[Question], count: int, seed: int) -> list[Question]:
    """Return ``count`` questions, as evenly over the kinds as they allow, in an order drawn from the seed."""
    by_kind: dict[str, list[Question]] = defaultdict(list)
    for question in sorted(questions, key=lambda q: _draw(f"{seed}/order/{q.id}")):
        by_kind[question.kind].append(question)
    ranked = [(rank, _draw(f"{seed}/order/{q.id}"), q) for group in by_kind.values() for rank, q in enumerate(group)]
    chosen = sorted(ranked, key=lambda row: row[:2])[:count]
    return [question for _, draw, question in sorted(chosen, key=lambda row: row[1])]


def _questions(data: DataConfig, questions: list[FactQuestion]) -> dict[str, list[Question]]:
    assigned = _assign(questions, split_entities(data.seed))
    kept: dict[str, list[Question]] = {}
    for split, count in (("test", data.num_test_questions), ("validation", data.num_validation_questions)):
        if count > len(assigned[split]):
            raise ValueError(
                f"data.num_{split}_questions={count} is more than the {len(assigned[split])} {split} questions that "
                f"the facts give; set it to at most {len(assigned[split])}"
            )
        kept[split] = _stratified(assigned[split], count, data.seed)
    kinds = sorted({question.kind for question in assigned["train"]})
    capped = [
        question
        for kind in kinds
        for question in _stratified(
            [q for q in assigned["train"] if q.kind == kind], MAX_TRAIN_QUESTIONS_PER_KIND, data.seed
        )
    ]
    kept["train"] = sorted(capped, key=lambda q: _draw(f"{data.seed}/order/{q.id}"))
    return kept


def _write_atomically(folder: Path, data: DataConfig) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    facts, evidence = build_facts()
    questions = _questions(data, facts)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        new = Path(temporary) / folder.name
        new.mkdir()
        rows = (asdict(q) for split in ("train", "validation", "test") for q in questions[split])
        _write_lines(new / "questions.jsonl", rows)
        _write_lines(new / "corpus.jsonl", _corpus_rows(evidence))
        try:
            new.rename(folder)
        except OSError:
            if not folder.is_dir():  # Otherwise another process was quicker and has written the same.
                raise


def _corpus_rows(evidence: dict[str, Evidence]) -> Iterable[dict[str, str]]:
    """Every document once: the evidence first, then the distractors that say nothing that is there already."""
    seen: set[str] = set()
    rows = [(item.id, item.text) for item in evidence.values()]
    for identifier, text in (*rows, *distractors(set(evidence))):
        if text not in seen:
            seen.add(text)
            yield {"id": identifier, "contents": text}


def _write_lines(path: Path, rows: Iterable[dict[str, object]] | Iterable[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _read(folder: Path) -> FactsWorld:
    questions: dict[str, list[Question]] = {split: [] for split in SPLIT_SHARES}
    for line in (folder / "questions.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        row["answers"], row["evidence"] = tuple(row["answers"]), tuple(row["evidence"])
        questions[row["split"]].append(Question(**row))
    evidence: dict[str, str] = {}
    with (folder / "corpus.jsonl").open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if not row["id"].startswith("facts/"):  # The evidence stands first.
                break
            evidence[row["id"]] = row["contents"]
    return FactsWorld(
        train=questions["train"],
        validation=questions["validation"],
        test=questions["test"],
        evidence=evidence,
        corpus=folder / "corpus.jsonl",
        folder=folder,
    )
