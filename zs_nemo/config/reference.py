"""Writes the reference of all settings, as Markdown, from the registered schemas: name, type, default, meaning."""

import ast
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from itertools import pairwise
from typing import Any

from hydra.core.config_store import ConfigNode, ConfigStore

from zs_nemo.config.recipe import RecipeConfig
from zs_nemo.config.registry import register

_SUFFIX = "_schema"
_COMMAND = "python recipes/settings_reference.py"
_INTRODUCTION = f"""\
# Every setting

Written by `{_COMMAND}` from the dataclasses in `zs_nemo/config/`; do not edit it by hand.
A setting is given after a command as `NAME=VALUE`. The defaults are those of the dataclasses; what the files in
`configs/` change of them is shown by `--cfg job`, as in `launch/quickstart.sh --cfg job`. A misspelt name or an
impossible value is refused before anything starts.
"""


@dataclass(frozen=True, kw_only=True)
class _Setting:
    name: str
    kind: str
    default: str
    meaning: str


def settings_reference() -> str:
    """Return the page."""
    register()
    recipes, choices = _schemas()
    parts = [_INTRODUCTION, "## All training recipes\n", *_sections(RecipeConfig, "", 3)]
    shared = {field.name: field for field in fields(RecipeConfig)}
    parts.append("## Choices of `search`\n\n`search=NAME` takes one of these, or another file of `configs/search/`.\n")
    for name, kind in choices.items():
        parts += [f"### `search={name}`\n", *_sections(kind, "search", 4, first_title="")]
    for name, kind in recipes.items():
        own = [field for field in fields(kind) if _type_of(kind, field) != _shared_type(shared, field)]
        parts.append(f"## Only in `{name}`\n\n{_said_of(kind)}\n")
        parts += _own_sections(kind, own)
    return "\n".join(parts)


def _schemas() -> tuple[dict[str, type], dict[str, type]]:
    """Return the recipes' schemas and those of the search group, by the names that a command has for them."""
    store = ConfigStore.instance()

    def kinds(nodes: dict[str, Any]) -> dict[str, type]:
        found = {name.removesuffix(".yaml"): node for name, node in nodes.items() if isinstance(node, ConfigNode)}
        return {
            name.removesuffix(_SUFFIX): node.node._metadata.object_type
            for name, node in sorted(found.items())
            if name.endswith(_SUFFIX)
        }

    return kinds(store.repo), kinds(store.repo["search"])


def _own_sections(kind: type, own: list["Field[Any]"]) -> list[str]:
    plain = [field for field in own if not is_dataclass(_type_of(kind, field))]
    parts = [_table([_setting(kind, field, "", _default_of(field)) for field in plain])] if plain else []
    for field in own:
        if isinstance(part := _type_of(kind, field), type) and is_dataclass(part):
            parts += _sections(part, field.name, 3, defaults=_default_of(field))
    return parts or ["Nothing: it takes the shared ones above.\n"]


def _sections(
    kind: type, prefix: str, level: int, *, first_title: str | None = None, defaults: Any = MISSING
) -> Iterator[str]:
    """Yield a group with its settings, then the groups within it.

    Where the group around it has a default for this one, its settings' defaults are of ``defaults``, not of ``kind``.
    """
    groups = []
    rows = []
    for field in fields(kind):
        part = _type_of(kind, field)
        name = f"{prefix}.{field.name}" if prefix else field.name
        default = _default_of(field) if defaults is MISSING else getattr(defaults, field.name)
        if isinstance(part, type) and is_dataclass(part):
            groups.append((part, name, default))
        else:
            rows.append(_setting(kind, field, prefix, default))
    if prefix and first_title is None:
        yield f"{'#' * level} `{prefix}`\n"
    if prefix:
        yield _said_of(kind) + "\n"
    if rows:
        yield _table(rows)
    for part, name, default in groups:
        yield from _sections(part, name, level, defaults=default)


def _setting(kind: type, field: "Field[Any]", prefix: str, default: Any) -> _Setting:
    part = _type_of(kind, field)
    meaning = _meanings(kind).get(field.name, "")
    if isinstance(part, type) and issubclass(part, Enum):
        meanings = _meanings(part)
        members = []
        for member in part:
            # A member's meaning is its docstring, or its value where that is a sentence.
            said = meanings.get(member.name) or (str(member.value) if " " in str(member.value) else "")
            members.append(f"`{member.name}`{': ' if said else ''}{said}")
        meaning = "<br>".join([*([meaning] if meaning else []), *members])
    return _Setting(
        name=f"{prefix}.{field.name}" if prefix else field.name,
        kind=_type_name(part),
        default=_told(default),
        meaning=meaning,
    )


def _table(settings: list[_Setting]) -> str:
    lines = ["| setting | type | default | meaning |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{each.name}` | {each.kind} | {each.default} | {each.meaning.replace('|', chr(92) + '|')} |"
        for each in settings
    ]
    return "\n".join(lines) + "\n"


def _default_of(field: "Field[Any]") -> Any:
    if field.default is MISSING and field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def _told(value: Any) -> str:
    if value is MISSING:
        return "needed"
    if isinstance(value, Enum):
        return f"`{value.name}`"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return "empty" if value == "" or value == [] or value == {} else f"`{value}`"


def _type_name(part: Any) -> str:
    if isinstance(part, types.UnionType) or typing.get_origin(part) is typing.Union:
        named = [_type_name(each) for each in typing.get_args(part) if each is not type(None)]
        return f"{' or '.join(named)}, or none"
    if typing.get_origin(part) is list:
        return f"list of {_type_name(typing.get_args(part)[0])}"
    if typing.get_origin(part) is dict:
        return "mapping"
    if isinstance(part, type) and issubclass(part, Enum):
        return "one of"
    names: dict[Any, str] = {int: "integer", float: "number", str: "text", bool: "true, false"}
    return names.get(part, getattr(part, "__name__", "any"))


def _type_of(kind: type, field: "Field[Any]") -> Any:
    return typing.get_type_hints(kind)[field.name]


def _shared_type(shared: dict[str, "Field[Any]"], field: "Field[Any]") -> Any:
    return _type_of(RecipeConfig, shared[field.name]) if field.name in shared else None


def _said_of(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").replace("``", "`").split())


@cache
def _meanings(kind: type) -> dict[str, str]:
    """Return the docstrings below the fields or members of a class and of those that it extends."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("zs_nemo."):
            (body,) = (node for node in ast.parse(textwrap.dedent(inspect.getsource(base))).body)
            assert isinstance(body, ast.ClassDef)
            found |= dict(_documented(body.body))
    return found


def _documented(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for statement, following in pairwise(body):
        target = (
            statement.target
            if isinstance(statement, ast.AnnAssign)
            else statement.targets[0]
            if isinstance(statement, ast.Assign)
            else None
        )
        if (
            isinstance(target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            yield target.id, " ".join(following.value.value.replace("``", "`").split())
