"""What a client may ask the search server, checked to the last field.

Two forms, told apart by their first field. Search-R1's, many queries at once:

    {"queries": ["..."], "topk": 3, "return_scores": true}

and ZeroSearch's for its Wikipedia server, one query: {"query": "...", "top_k": 5}. To both, fields of ours can be
added that let a simulator do its work: question, gold answers and turn of each query, how noisy the documents are to
be (one of ``noise``, ``noisy`` and ``step``), and a ``seed``, with which the same request gets the same answer again.

No query at all and an empty one are requests like any other, which find nothing: Search-R1's trainer sends them when no
episode searches in a turn, or one writes ``<search></search>``, and ends with an error if it is refused. For the same
reason a query that is too long, which a policy that rambles writes, is cut and not refused.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zs_nemo.config.server import ServerConfig

MALFORMED, UNPROCESSABLE = 400, 422
_MAX_SEED = 2**63 - 1
_MAX_REASONS = 3

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=0, le=_MAX_SEED)]
Value = TypeVar("Value")


class RequestRefused(Exception):  # noqa: N818  (an answer to the client, not an error of ours)
    """A request that gets no documents: the HTTP status and the reason."""

    def __init__(self, status: int, reason: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, kw_only=True)
class AskedSearch:
    """One query of a request."""

    query: str
    question: str = ""
    answers: tuple[str, ...] = ()
    turn: int = 0
    noise: float | None = None
    """P(noisy), or None where the request leaves it to ``step`` or to the server."""


@dataclass(frozen=True, kw_only=True)
class AskedSearches:
    """A whole request, whichever form it had."""

    searches: tuple[AskedSearch, ...]
    num_documents: int | None
    """None for the server's default."""
    return_scores: bool
    step: int | None
    seed: int | None
    wants_list: bool
    """Whether it is ZeroSearch's form, answered with one plain list."""
    num_cut: int = 0
    """Queries that were longer than the server takes."""


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    step: Count | None = None
    seed: Seed | None = None


class _BatchForm(_Form):
    queries: list[str]
    topk: Count | None = None
    return_scores: bool = False
    questions: list[str] | None = None
    answers: list[list[str]] | None = None
    turns: list[Count] | None = None
    noise: Probability | list[Probability] | None = None
    noisy: bool | list[bool] | None = None


class _SingleForm(_Form):
    query: str
    top_k: Count | None = None
    question: str | None = None
    answers: list[str] | None = None
    turn: Count | None = None
    noise: Probability | None = None
    noisy: bool | None = None


class _UrlForm(BaseModel):
    """What can be said in the address, for a client of which nothing but the address can be changed."""

    model_config = ConfigDict(extra="forbid")

    noise: Probability | None = None
    step: Count | None = None
    seed: Seed | None = None


def read_request(body: bytes, parameters: Mapping[str, str], limits: ServerConfig) -> AskedSearches:
    """Return what is asked; raise ``RequestRefused``. ``parameters`` are those of the address: the body wins."""
    try:
        data = pydantic_core.from_json(body)
    except ValueError as error:
        raise RequestRefused(MALFORMED, f"the body is no JSON: {error}") from None
    if not isinstance(data, dict):
        raise RequestRefused(UNPROCESSABLE, f"the body must be a JSON object, not {_json_type(data)}")
    try:
        url = _UrlForm.model_validate(dict(parameters))
        form = (_SingleForm if "query" in data else _BatchForm).model_validate(data)
    except ValidationError as error:
        raise RequestRefused(UNPROCESSABLE, _reasons(error)) from None
    asked = _from_single(form) if isinstance(form, _SingleForm) else _from_batch(form)
    _check_limits(asked, limits)
    return _with_url(_with_queries_cut(asked, limits.max_query_characters), form, url)


def token_of(authorization: str) -> bytes:
    """Return the token that a header Authorization holds, as a bearer or as the password of Basic; empty without.

    Python's requests sends Basic for what stands before the host of an address, which is all that can be set of some
    clients.
    """
    scheme, _, credentials = authorization.partition(" ")
    # The scheme is the same in any case (RFC 9110, section 11.1).
    match scheme.lower():
        case "bearer":
            return credentials.encode("utf-8", "surrogateescape")
        case "basic":
            try:
                return base64.b64decode(credentials, validate=True).partition(b":")[2]
            except ValueError:
                return b""
    return b""


def _from_single(form: _SingleForm) -> AskedSearches:
    _check_one_noise(form.noise, form.noisy, form.step)
    noise = form.noise if form.noisy is None else float(form.noisy)
    search = AskedSearch(
        query=form.query,
        question=form.question or "",
        answers=tuple(form.answers or ()),
        turn=form.turn or 0,
        noise=noise,
    )
    return AskedSearches(
        searches=(search,),
        num_documents=form.top_k or None,
        return_scores=True,
        step=form.step,
        seed=form.seed,
        wants_list=True,
    )


def _from_batch(form: _BatchForm) -> AskedSearches:
    _check_one_noise(form.noise, form.noisy, form.step)
    count = len(form.queries)
    asked_noise = form.noise if form.noisy is None else form.noisy
    noises = asked_noise if isinstance(asked_noise, list) else [asked_noise] * count
    columns = zip(
        form.queries,
        _column("questions", form.questions, count, ""),
        _column("answers", form.answers, count, []),
        _column("turns", form.turns, count, 0),
        _column("noise" if form.noisy is None else "noisy", noises, count, None),
        strict=True,
    )
    return AskedSearches(
        searches=tuple(
            AskedSearch(
                query=query,
                question=question,
                answers=tuple(answers),
                turn=turn,
                noise=None if noise is None else float(noise),
            )
            for query, question, answers, turn, noise in columns
        ),
        # As Search-R1's server does, which takes 0 for the default too.
        num_documents=form.topk or None,
        return_scores=form.return_scores,
        step=form.step,
        seed=form.seed,
        wants_list=False,
    )


def _with_url(asked: AskedSearches, form: _BatchForm | _SingleForm, url: _UrlForm) -> AskedSearches:
    if asked.seed is None:
        asked = replace(asked, seed=url.seed)
    if form.noise is not None or form.noisy is not None or form.step is not None:
        return asked
    _check_one_noise(url.noise, None, url.step)
    if url.noise is not None:
        asked = replace(asked, searches=tuple(replace(search, noise=url.noise) for search in asked.searches))
    return replace(asked, step=url.step)


def _column(name: str, values: Sequence[Value] | None, count: int, default: Value) -> Sequence[Value]:
    if values is None:
        return [default] * count
    if len(values) != count:
        raise RequestRefused(UNPROCESSABLE, f"{name}: has {len(values)} entries for {count} queries")
    return values


def _check_one_noise(noise: Any, noisy: Any, step: Any) -> None:
    given = [name for name, value in (("noise", noise), ("noisy", noisy), ("step", step)) if value is not None]
    if len(given) > 1:
        raise RequestRefused(UNPROCESSABLE, f"{' and '.join(given)}: only one of them can say how noisy the answer is")


def _check_limits(asked: AskedSearches, limits: ServerConfig) -> None:
    if len(asked.searches) > limits.max_queries:
        raise RequestRefused(
            UNPROCESSABLE, f"queries: {len(asked.searches)} in one request, this server takes {limits.max_queries}"
        )
    if (asked.num_documents or 0) > limits.max_topk:
        name = "top_k" if asked.wants_list else "topk"
        raise RequestRefused(
            UNPROCESSABLE, f"{name}: {asked.num_documents} is more than this server's {limits.max_topk}"
        )
    for number, search in enumerate(asked.searches):
        longest = max(map(len, (search.question, *search.answers)))
        if longest > limits.max_query_characters:
            raise RequestRefused(
                UNPROCESSABLE,
                f"{_place(asked, number)}: a question or an answer of {longest} characters, this server takes "
                f"{limits.max_query_characters}",
            )


def _with_queries_cut(asked: AskedSearches, most: int) -> AskedSearches:
    searches = tuple(replace(search, query=search.query[:most]) for search in asked.searches)
    return replace(asked, searches=searches, num_cut=sum(len(search.query) > most for search in asked.searches))


def _place(asked: AskedSearches, number: int) -> str:
    return "query" if asked.wants_list else f"queries.{number}"


def _reasons(error: ValidationError) -> str:
    """Return one line: the field and what is wrong with it, of the first few."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in found[:_MAX_REASONS]]
    more = len(found) - len(lines)
    return "; ".join(lines) + (f"; and {more} more" if more else "")


def _json_type(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
