"""Real documents that make the corpus hard to search: Factbook passages, geonames' cities, notes on the elements.

They cover all countries and elements, whatever the split: a real search engine knows everything.
"""

import re
from collections.abc import Collection, Iterator
from typing import Any

from zs_nemo.qa import fact_sources

MAX_WORDS = 45
"""Longest document, its title included."""
_MIN_WORDS = 5
_STATED_BY_EVIDENCE = {"facts/capital/": "/Government/Capital/name/", "facts/currency/": "/Exchange rates/Currency/"}
"""Factbook fields that repeat what an evidence document of the same country says already."""
_POSITIONS = {"N": "north", "S": "south", "E": "east", "W": "west"}


def distractors(taken: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield (identifier, text) of every distractor. What is evidence already (identifiers in ``taken``) is left out."""
    yield from _cities(taken)
    yield from _elements()
    iso_codes = {row["fips"].lower(): iso for iso, row in fact_sources.geonames_countries().items() if row["fips"]}
    for code, profile in fact_sources.factbook().items():
        stated = [field for prefix, field in _STATED_BY_EVIDENCE.items() if f"{prefix}{iso_codes.get(code)}" in taken]
        for identifier, text in _profile(code, profile):
            if not any(field in identifier for field in stated):
                yield identifier, text


def split_long(text: str, max_words: int) -> list[str]:
    """Cut a text at the ends of sentences or clauses into pieces of about ``max_words`` words.

    A clause that is longer is cut between words. A last piece of a few words stays with the one before it, which may
    then be longer by those. No word is lost.
    """
    pieces: list[list[str]] = [[]]
    for clause in re.split(r"(?<=[.;:!?])\s+", text):
        words = clause.split()
        if pieces[-1] and len(pieces[-1]) + len(words) > max_words:
            pieces.append([])
        while len(words) > max_words:
            room = max_words - len(pieces[-1])
            pieces[-1] += words[:room]
            words = words[room:]
            pieces.append([])
        pieces[-1] += words
    if len(pieces) > 1 and len(pieces[-1]) < _MIN_WORDS:
        last = pieces.pop()
        pieces[-1] += last
    return [" ".join(piece) for piece in pieces if piece]


def _cities(taken: Collection[str]) -> Iterator[tuple[str, str]]:
    countries = fact_sources.geonames_countries()
    for row in fact_sources.all_cities():
        country = countries.get(row["countrycode"])
        if country is None or f"facts/city/{row['geonameid']}" in taken:
            continue
        latitude, longitude = float(row["latitude"]), float(row["longitude"])
        where = (
            f"{abs(latitude):.1f} degrees {_POSITIONS['N' if latitude >= 0 else 'S']}, "
            f"{abs(longitude):.1f} degrees {_POSITIONS['E' if longitude >= 0 else 'W']}"
        )
        zone = row["timezone"].replace("_", " ")
        town = f"{row['name']} is a town of {row['population']:,} people in {country['name']}"
        yield f"geonames/{row['geonameid']}", f"{town}, at {where}; time zone {zone}."


def _elements() -> Iterator[tuple[str, str]]:
    for name, notes in fact_sources.element_notes():
        for number, piece in enumerate(split_long(notes, MAX_WORDS - _MIN_WORDS - 1)):
            if len(piece.split()) >= _MIN_WORDS:
                yield f"mendeleev/{name.lower()}/{number}", f"{name}: {piece}"


def _profile(code: str, profile: dict[str, Any]) -> Iterator[tuple[str, str]]:
    country = fact_sources.factbook_text(profile, "Government", "Country name", "conventional short form")
    if country in ("", "none"):
        country = fact_sources.factbook_text(profile, "Government", "Country name", "conventional long form") or code
    country = re.split(r"[,;(]", country)[0].strip()
    for path, text in _leaves(profile):
        title = " - ".join((country, *(part for part in path[1:] if part not in ("text", "note"))))
        title = re.sub(r"\s+", " ", title).strip()
        room = max(MAX_WORDS - _MIN_WORDS - len(title.split()), _MIN_WORDS)
        for number, piece in enumerate(split_long(fact_sources.strip_markup(text), room)):
            if len(piece.split()) + len(title.split()) >= _MIN_WORDS:
                yield f"factbook/{code}/{'/'.join(path)}/{number}", f"{title}: {piece}"


def _leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(node, str):
        yield path, node
    elif isinstance(node, dict):
        for name, child in node.items():
            yield from _leaves(child, (*path, name.strip()))
    elif isinstance(node, list):
        for number, child in enumerate(node):
            yield from _leaves(child, (*path, str(number)))
