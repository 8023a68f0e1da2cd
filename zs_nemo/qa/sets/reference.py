"""How a set is named in ``data.train`` and ``data.test``, and which names are known."""

import re
from dataclasses import dataclass
from enum import Enum

HUB_PREFIX, WHEEL_PREFIX = "hub:", "pyserini/"
FACTS = "facts"
FILE_SUFFIXES = (".jsonl", ".parquet")
SPLITS = {"train": "train", "dev": "validation", "validation": "validation", "test": "test"}
"""A split's name in the set -> ``Question.split``."""

FLASHRAG = "RUC-NLPIR/FlashRAG_datasets"
"""The collection from which Search-R1 and ZeroSearch took their sets."""
HUB_SETS = {
    "nq": ("train", "dev", "test"),
    "triviaqa": ("train", "dev", "test"),
    "popqa": ("test",),
    "hotpotqa": ("train", "dev"),
    "2wikimultihopqa": ("train", "dev"),
    "musique": ("train", "dev"),
    "bamboogle": ("test",),
}
"""The seven sets of ZeroSearch with the splits that ``FLASHRAG`` has of them."""
WHEEL_SETS = {
    "nq": ("dev", "test"),
    "triviaqa": ("dev", "test"),
    "webquestions": ("test",),
    "squad": ("test",),
    "curatedtrec": ("test",),
}
"""What the wheel of pyserini carries."""
PUBLISHED_TEST_SETS = (
    "nq:test",
    "triviaqa:test",
    "popqa:test",
    "hotpotqa:dev",
    "2wikimultihopqa:dev",
    "musique:dev",
    "bamboogle:test",
)
"""What the published averages are taken over."""


class Place(Enum):
    """Where the rows of a set lie."""

    facts = "the facts world, built from installed packages"
    hub = "the Hugging Face hub"
    wheel = "the wheel of pyserini"
    file = "a file on this machine"


@dataclass(frozen=True, kw_only=True)
class SetReference:
    """One set, as the configuration names it."""

    text: str
    """As written."""
    place: Place
    name: str
    """The set's name for ids and reports; a guess from the path where the rows themselves may know better."""
    split: str
    """As the set calls it; empty where the file has to say."""
    repository: str = ""
    """``OWNER/NAME`` on the hub."""
    folder: str = ""
    """Within the repository."""
    revision: str = "main"


def parse_reference(text: str) -> SetReference:
    """Read the name of a set; raise ``ValueError`` with the names that would do."""
    if text.startswith(HUB_PREFIX):
        return _hub_reference(text)
    if text.endswith(FILE_SUFFIXES):
        name, split = name_of_file(text)
        return SetReference(text=text, place=Place.file, name=name, split=split)
    known, place = (WHEEL_SETS, Place.wheel) if text.startswith(WHEEL_PREFIX) else (HUB_SETS, Place.hub)
    name, _, split = text.removeprefix(WHEEL_PREFIX).partition(":")
    if place is Place.hub and name == FACTS:
        known, place = {FACTS: ("train", "validation", "test")}, Place.facts
    if split not in known.get(name, ()):
        raise ValueError(f"the set {text!r} is unknown; known are {', '.join(known_names())}")
    on_hub = {"repository": FLASHRAG, "folder": name} if place is Place.hub else {}
    return SetReference(text=text, place=place, name=name, split=split, **on_hub)


def name_of_file(path: str) -> tuple[str, str]:
    """Return the set and the split that a file is named after; the split may be empty.

    ``nq/test.jsonl``, ``nq_test.jsonl`` and ``nq-test.parquet`` are nq, test; ``bamboogle.jsonl`` is bamboogle.
    """
    *folders, file = path.replace("\\", "/").split("/")
    stem = file.rpartition(".")[0]
    if stem in SPLITS:
        return clean_name(folders[-1] if folders else ""), stem
    if match := re.fullmatch(rf"(.+)[_-]({'|'.join(SPLITS)})", stem):
        return clean_name(match[1]), match[2]
    return clean_name(stem), ""


def clean_name(name: str) -> str:
    """Return a set's name as ids have it: lower case, and without the slash that ids are cut at."""
    return re.sub(r"[\s/]+", "_", name.strip().lower()).strip("_.")


def _hub_reference(text: str) -> SetReference:
    path, _, revision = text.removeprefix(HUB_PREFIX).partition("@")
    place, _, split = path.partition(":")
    owner, _, rest = place.partition("/")
    name, _, folder = rest.partition("/")
    if not (owner and name and split):
        raise ValueError(
            f"{text!r} must read hub:OWNER/NAME:SPLIT, or hub:OWNER/NAME/FOLDER:SPLIT@REVISION; for example "
            "hub:RUC-NLPIR/FlashRAG_datasets/nq:test"
        )
    if split not in SPLITS:
        raise ValueError(
            f"{text!r}: the split {split!r} must be one of {', '.join(SPLITS)}, for what a question may be used for "
            "follows from it; fetch a file with another name, call it NAME_test.jsonl or the like, and give its path"
        )
    return SetReference(
        text=text,
        place=Place.hub,
        name=clean_name(folder.rpartition("/")[2] or name),
        split=split,
        repository=f"{owner}/{name}",
        folder=folder,
        revision=revision or "main",
    )


def known_names() -> list[str]:
    """Return what may be written for a set, one form a line."""
    sets = [
        f"{prefix}{name}:{'|'.join(splits)}"
        for prefix, known in (("", HUB_SETS), (WHEEL_PREFIX, WHEEL_SETS))
        for name, splits in known.items()
    ]
    files = [f"the path of a {suffix} file" for suffix in FILE_SUFFIXES]
    return ["facts:train|validation|test", *sets, "hub:OWNER/NAME[/FOLDER]:SPLIT[@REVISION]", *files]
