"""Turns the facts into questions and evidence: what is asked, in which words, and which sentence supports it.

Every text has a few wordings; which one is used is drawn by a hash of the fact's name, so that it never depends on
order. Owns no splitting.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from zs_nemo.qa.fact_sources import (
    City,
    Country,
    Element,
    load_cities,
    load_countries,
    load_elements,
    person_names,
    spellings,
)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One sentence that states facts of ``entities``."""

    id: str
    text: str
    entities: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class FactQuestion:
    """A question before it has a split. ``entities`` are all countries and elements that it touches on its way."""

    id: str
    kind: str
    text: str
    answers: tuple[str, ...]
    evidence: tuple[str, ...]
    entities: frozenset[str]


QUESTION_TEMPLATES: dict[str, tuple[str, ...]] = {
    "capital": (
        "What is the capital of {country}?",
        "Which city is the capital of {country}?",
        "What is the name of the capital city of {country}?",
    ),
    "country_of_capital": (
        "Which country has {capital} as its capital?",
        "{capital} is the capital of which country?",
        "Of which country is {capital} the capital city?",
    ),
    "region": (
        "In which region of the world is {country} located?",
        "What region of the world does {country} belong to?",
    ),
    "currency": (
        "What is the currency of {country}?",
        "What currency is used in {country}?",
        "Which currency do people use in {country}?",
    ),
    "city_country": (
        "In which country is the city of {city}?",
        "The city of {city} is located in which country?",
        "Which country is the city of {city} in?",
    ),
    "symbol": (
        "What is the chemical symbol of {element}?",
        "What is the chemical symbol for the element {element}?",
    ),
    "element_of_symbol": (
        "Which element has the chemical symbol {symbol}?",
        "What chemical element has the symbol {symbol}?",
    ),
    "atomic_number": (
        "What is the atomic number of {element}?",
        "What is the atomic number of the element {element}?",
    ),
    "discoverer": (
        "Who discovered {element}?",
        "Who discovered the chemical element {element}?",
        "By whom was the element {element} discovered?",
    ),
    "element_country": (
        "In which country was {element} discovered?",
        "In what country was the element {element} discovered?",
    ),
    "city_country_capital": (
        "What is the capital of the country where the city of {city} is located?",
        "The city of {city} lies in a country. What is the capital of that country?",
    ),
    "city_country_currency": (
        "What is the currency of the country where the city of {city} is located?",
        "What currency is used in the country that the city of {city} is in?",
    ),
    "capital_country_currency": (
        "What is the currency of the country whose capital is {capital}?",
        "What currency is used in the country that has {capital} as its capital?",
    ),
    "element_country_capital": (
        "What is the capital of the country where {element} was discovered?",
        "The element {element} was discovered in a country. What is the capital of that country?",
    ),
}
"""The kinds of questions, and how each is asked."""

TWO_HOP_KINDS = frozenset(
    ("city_country_capital", "city_country_currency", "capital_country_currency", "element_country_capital")
)

EVIDENCE_TEMPLATES: dict[str, tuple[str, ...]] = {
    "capital": (
        "{capital} is the capital city of {country}.",
        "The capital of {country} is the city of {capital}.",
        "The capital city of {country} is {capital}.",
    ),
    "region": (
        "{Country} is located in {region}, the region of the world that it belongs to.",
        "The region of the world that {country} belongs to is {region}, where it is located.",
    ),
    "currency": (
        "The {currency} ({code}) is the currency used in {country}.",
        "The currency used in {country} is the {currency} ({code}).",
    ),
    "city": (
        "{city} is a city of about {population:,} inhabitants in the country of {country}.",
        "The city of {city} is located in the country of {country} and has about {population:,} inhabitants.",
    ),
    "symbol": (
        "{Element} is a chemical element with the symbol {symbol} and atomic number {number}.",
        "The chemical element {element} has the symbol {symbol} and the atomic number {number}.",
    ),
    "discoverer": (
        "The chemical element {element} was discovered{in_year}. Its discoverer was {people}.",
        "{Element} is a chemical element discovered{in_year} by its discoverer {people}.",
    ),
    "discoverers": (
        "The chemical element {element} was discovered{in_year}. Its discoverers were {people}.",
        "{Element} is a chemical element discovered{in_year} by its discoverers {people}.",
    ),
    "element_country": (
        "The country where the chemical element {element} was discovered{in_year} is {place}.",
        "The chemical element {element} was discovered{in_year} in the country of {place}.",
    ),
}


def choose(options: tuple[str, ...], name: str) -> str:
    """Return one of ``options`` by a hash of ``name``."""
    return options[int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") % len(options)]


def country_id(code: str) -> str:
    """Return the entity of a country."""
    return f"country:{code}"


def element_id(symbol: str) -> str:
    """Return the entity of an element."""
    return f"element:{symbol}"


def build_facts() -> tuple[list[FactQuestion], dict[str, Evidence]]:
    """Return every question that the sources give, and the evidence by identifier."""
    countries = {country.code: country for country in load_countries()}
    questions: list[FactQuestion] = []
    evidence: dict[str, Evidence] = {}
    for country in countries.values():
        evidence |= {item.id: item for item in _country_evidence(country)}
        questions += _country_questions(country)
    for city in load_cities():
        country = countries[city.country]
        item = _city_evidence(city, country)
        evidence[item.id] = item
        questions += _city_questions(city, country)
    for element in load_elements():
        evidence |= {item.id: item for item in _element_evidence(element)}
        questions += _element_questions(element, countries)
    return questions, evidence


def _sentence(kind: str, name: str, **values: object) -> str:
    text = choose(EVIDENCE_TEMPLATES[kind], f"evidence/{kind}/{name}").format(**values)
    return text[0].upper() + text[1:]


def _question(
    kind: str, name: str, answers: tuple[str, ...], evidence: tuple[str, ...], entities: frozenset[str], **values: str
) -> FactQuestion:
    text = choose(QUESTION_TEMPLATES[kind], f"question/{kind}/{name}").format(**values)
    return FactQuestion(
        id=f"facts/{kind}/{name}",
        kind=kind,
        text=text[0].upper() + text[1:],
        answers=answers,
        evidence=evidence,
        entities=entities,
    )


def _country_evidence(country: Country) -> Iterator[Evidence]:
    entities = frozenset({country_id(country.code)})
    phrase = country.phrase
    if country.capital:
        text = _sentence("capital", country.code, capital=country.capital, country=phrase)
        yield Evidence(id=f"facts/capital/{country.code}", text=text, entities=entities)
    if country.region:
        text = _sentence("region", country.code, Country=phrase, country=phrase, region=country.region)
        yield Evidence(id=f"facts/region/{country.code}", text=text, entities=entities)
    if country.currency:
        values = {"currency": country.currency, "code": country.currency_code, "country": phrase}
        text = _sentence("currency", country.code, **values)
        yield Evidence(id=f"facts/currency/{country.code}", text=text, entities=entities)


def _country_questions(country: Country) -> Iterator[FactQuestion]:
    code, phrase, entities = country.code, country.phrase, frozenset({country_id(country.code)})
    capital, currency = f"facts/capital/{code}", f"facts/currency/{code}"
    if country.capital:
        yield _question("capital", code, country.capital_names, (capital,), country=phrase, entities=entities)
        yield _question(
            "country_of_capital", code, country.names, (capital,), capital=country.capital, entities=entities
        )
    if country.region:
        yield _question(
            "region", code, country.region_names, (f"facts/region/{code}",), country=phrase, entities=entities
        )
    if country.currency:
        yield _question("currency", code, country.currency_names, (currency,), country=phrase, entities=entities)
    if country.capital and country.currency:
        yield _question(
            "capital_country_currency",
            code,
            country.currency_names,
            (capital, currency),
            capital=country.capital,
            entities=entities,
        )


def _city_evidence(city: City, country: Country) -> Evidence:
    text = _sentence("city", city.id, city=city.name, country=country.phrase, population=city.population)
    return Evidence(id=f"facts/city/{city.id}", text=text, entities=frozenset({country_id(country.code)}))


def _city_questions(city: City, country: Country) -> Iterator[FactQuestion]:
    entities, here, code = frozenset({country_id(country.code)}), f"facts/city/{city.id}", country.code
    yield _question("city_country", city.id, country.names, (here,), city=city.name, entities=entities)
    if country.capital:
        evidence = (here, f"facts/capital/{code}")
        yield _question(
            "city_country_capital", city.id, country.capital_names, evidence, city=city.name, entities=entities
        )
    if country.currency:
        evidence = (here, f"facts/currency/{code}")
        yield _question(
            "city_country_currency", city.id, country.currency_names, evidence, city=city.name, entities=entities
        )


def _element_evidence(element: Element) -> Iterator[Evidence]:
    entities, symbol = frozenset({element_id(element.symbol)}), element.symbol
    text = _sentence("symbol", symbol, Element=element.name, element=element.name, symbol=symbol, number=element.number)
    yield Evidence(id=f"facts/symbol/{symbol}", text=text, entities=entities)
    in_year = f" in {element.discovery_year}" if element.discovery_year else ""
    if element.discoverers:
        people = " and ".join((", ".join(element.discoverers[:-1]), element.discoverers[-1])).removeprefix(" and ")
        kind = "discoverers" if len(element.discoverers) > 1 else "discoverer"
        text = _sentence(kind, symbol, Element=element.name, element=element.name, people=people, in_year=in_year)
        yield Evidence(id=f"facts/discoverer/{symbol}", text=text, entities=entities)
    if element.discovery_country:
        both = entities | {country_id(element.discovery_country)}
        values = {"place": element.discovery_place, "in_year": in_year}
        text = _sentence("element_country", symbol, Element=element.name, element=element.name, **values)
        yield Evidence(id=f"facts/element_country/{symbol}", text=text, entities=both)


def _element_questions(element: Element, countries: dict[str, Country]) -> Iterator[FactQuestion]:
    symbol, name, entities = element.symbol, element.name, frozenset({element_id(element.symbol)})
    here = (f"facts/symbol/{symbol}",)
    yield _question("symbol", symbol, (symbol,), here, element=name, entities=entities)
    yield _question("element_of_symbol", symbol, element.names, here, symbol=symbol, entities=entities)
    yield _question("atomic_number", symbol, (str(element.number),), here, element=name, entities=entities)
    if element.discoverers:
        people = person_names(element.discoverers)
        yield _question("discoverer", symbol, people, (f"facts/discoverer/{symbol}",), element=name, entities=entities)
    if element.discovery_country:
        code = element.discovery_country
        country, place = countries[code], f"facts/element_country/{symbol}"
        both = entities | {country_id(code)}
        answers = spellings(element.discovery_place.removeprefix("the "), *country.names)
        yield _question("element_country", symbol, answers, (place,), element=name, entities=both)
        if country.capital:
            evidence = (place, f"facts/capital/{code}")
            yield _question(
                "element_country_capital", symbol, country.capital_names, evidence, element=name, entities=both
            )
