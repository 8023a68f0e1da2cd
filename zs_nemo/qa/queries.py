"""What a person would type to look up each step of a question: for scripted episodes and the simulator's examples."""

import re
from functools import lru_cache

from zs_nemo.qa.fact_sources import Country, load_countries
from zs_nemo.qa.fact_templates import QUESTION_TEMPLATES
from zs_nemo.types.question import Question

QUERY_TEMPLATES: dict[str, tuple[str, ...]] = {
    "capital": ("capital of {subject}", "{subject} capital city", "What is the capital of {subject}?"),
    "country_of_capital": (
        "{subject} capital of which country",
        "country whose capital is {subject}",
        "Which country has the capital {subject}?",
    ),
    "region": ("region of the world {subject}", "{subject} located in which region", "Where is {subject} located?"),
    "currency": ("currency of {subject}", "{subject} currency", "What currency is used in {subject}?"),
    "city_country": ("{subject} city country", "city of {subject} country", "Which country is {subject} in?"),
    "symbol": ("chemical symbol of {subject}", "{subject} chemical symbol", "What is the symbol of {subject}?"),
    "element_of_symbol": (
        "element with symbol {subject}",
        "chemical symbol {subject} element",
        "Which element has the symbol {subject}?",
    ),
    "atomic_number": (
        "atomic number of {subject}",
        "{subject} atomic number",
        "What is the atomic number of {subject}?",
    ),
    "discoverer": ("discoverer of {subject}", "who discovered {subject}", "Who discovered the element {subject}?"),
    "element_country": (
        "country where {subject} was discovered",
        "{subject} discovered in which country",
        "In which country was {subject} discovered?",
    ),
}
"""Wordings of one step: keywords, more keywords, a question."""

HOPS: dict[str, tuple[str, ...]] = {
    "city_country_capital": ("city_country", "capital"),
    "city_country_currency": ("city_country", "currency"),
    "capital_country_currency": ("country_of_capital", "currency"),
    "element_country_capital": ("element_country", "capital"),
}
"""The steps of the two-hop kinds; every other kind is its own only step."""


def subject_of(question: Question) -> str:
    """Return the name that the question was made from: "France" of "What is the capital of France?"."""
    matches = [match[1] for pattern in _patterns(question.kind) if (match := pattern.fullmatch(question.text))]
    if matches:  # Of "the element neon" and "neon" the wording that was used leaves the shorter one.
        return min(matches, key=len)
    raise ValueError(
        f"question {question.id!r} has the kind {question.kind!r} but none of its wordings: {question.text!r}"
    )


@lru_cache(maxsize=64)
def _patterns(kind: str) -> tuple[re.Pattern[str], ...]:
    escaped = [re.escape(template) for template in QUESTION_TEMPLATES[kind]]
    return tuple(re.compile(re.sub(r"\\\{\w+\\\}", "(.+)", text), re.IGNORECASE) for text in escaped)


def hop_queries(question: Question) -> list[tuple[str, ...]]:
    """Return, for every search that the question needs, the queries that a person might type."""
    kinds = HOPS.get(question.kind, (question.kind,))
    subjects = [subject_of(question)]
    if len(kinds) == 2:
        subjects.append(_country_of_evidence(question.evidence[1]).phrase)
    return [
        tuple(template.format(subject=subject) for template in QUERY_TEMPLATES[kind])
        for kind, subject in zip(kinds, subjects, strict=True)
    ]


def bridge_of(question: Question) -> str:
    """Return the country that links the two steps of a two-hop question."""
    return _country_of_evidence(question.evidence[1]).phrase


def _country_of_evidence(identifier: str) -> Country:
    """Return the country of ``facts/capital/FR`` or ``facts/currency/FR``."""
    return _countries()[identifier.rsplit("/", 1)[1]]


@lru_cache(maxsize=1)
def _countries() -> dict[str, Country]:
    return {country.code: country for country in load_countries()}
