"""The wording of the simulator's prompts: Jinja files, ours in ``templates/`` and a user's own by path.

A template is one text for useful and for noisy documents, with these slots:

- ``query``, ``question``, ``answers``: texts on one line; ``answers`` are all gold answers that may be named, joined
  with "or". Question and answers are empty when a search comes without them.
- ``noisy``: whether documents are wanted that do not help.
- ``num_documents``, ``num_words``: how many documents of about how many words; required where a completion holds all
  documents of a search, so that neither stands in the text.
- ``examples`` (optional): each with ``question``, ``query``, ``answer``, ``topic`` and ``document``, built from
  training questions.
- ``topic`` (optional): what a noisy document can be about; in the examples of a fine-tuning, what theirs is about.

For a chat, the comments ``{# system #}``, ``{# user #}`` and ``{# assistant #}``, each on a line of its own, begin a
message; a template without them is one message of the user. A message without text is left out, but for the system's:
with an empty one a model's chat template does not put in its own. A final line break does not count.
``{{ num_documents | in_words }}`` writes "five" for 5.
"""

import re
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, meta
from jinja2.sandbox import SandboxedEnvironment

from zs_nemo.config.endpoints import ApiKind
from zs_nemo.config.search import DocumentsPerCompletion
from zs_nemo.types.completion import ChatMessage, Prompt

REQUIRED = ("query", "question", "answers", "noisy")
REQUIRED_FOR_ALL = ("num_documents", "num_words")
OPTIONAL = ("examples", "topic")
_OURS = {DocumentsPerCompletion.one: "short.j2", DocumentsPerCompletion.all: "instruction.j2"}
_BY_NAME = ("tuned", "open")
"""``tuned`` for a small model that ``recipes/sft_simulator.py`` has fine-tuned: it needs no examples. ``open`` for a
small prompted model and questions of any set: our short form names an answer only where the query asks for it, and can
tell that for the facts world's questions alone."""
_EXTRA = {"short.j2": ("cue",)}
"""Slots that our own short form fills and no other template can count on."""
_IN_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_MESSAGE = re.compile(r"^\{#-?[ \t]*(system|user|assistant)[ \t]*-?#\}[ \t]*\n", re.MULTILINE)


class PromptTemplate:
    """One template, checked."""

    def __init__(
        self,
        source: str,
        documents: DocumentsPerCompletion,
        *,
        name: str = "the template",
        extra_slots: tuple[str, ...] = (),
    ) -> None:
        """Raise ``ValueError`` naming the slot that is missing or unknown, or the line that is no valid Jinja."""
        environment = SandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        environment.filters["in_words"] = _in_words
        try:
            slots = meta.find_undeclared_variables(environment.parse(source))
            self._whole = environment.from_string(source)
            self._messages = _messages(environment, source)
        except TemplateSyntaxError as error:
            raise ValueError(
                f"search.template: {name}, line {error.lineno}: {error.message}; it must be valid Jinja"
            ) from error
        self.source = source
        self.slots = frozenset(slots)
        required = REQUIRED + (REQUIRED_FOR_ALL if documents is DocumentsPerCompletion.all else ())
        if missing := [slot for slot in required if slot not in slots]:
            raise ValueError(
                f"search.template: {name} has no {_listed(missing)}; put {_braces(missing)} where it belongs "
                f"(needed with search.documents_per_completion={documents.name}: {', '.join(required)})"
            )
        known = {*REQUIRED, *REQUIRED_FOR_ALL, *OPTIONAL, *extra_slots}
        if unknown := sorted(slots - known):
            raise ValueError(
                f"search.template: {name} has the unknown {_listed(unknown)}; known are {', '.join(sorted(known))}"
            )

    def render(self, api: ApiKind, slots: dict[str, Any]) -> Prompt:
        """Return the prompt. Texts in ``slots`` are inserted as they are and never read as a template."""
        if api is ApiKind.completions:
            return self._whole.render(slots)
        messages = (ChatMessage(role=role, content=template.render(slots).strip()) for role, template in self._messages)
        return tuple(message for message in messages if message.content or message.role == "system")


def load_template(path: str, documents: DocumentsPerCompletion) -> PromptTemplate:
    """Return the template of a file, ours for an empty path, or one that lies beside ours by its bare name (``tuned``,
    ``open``). ``required`` stands for one that has to be named.

    Raises ``ValueError`` for one that cannot be used.
    """
    if path == "required":
        raise ValueError(
            "search.template=required: this simulator wants the wording that it was trained on, which has no file of "
            "ours; write it into one and name it (search.template=FILE), or choose search=prompted_3b, prompted_7b or "
            "prompted_14b, which are asked in our wording"
        )
    if not path or path in _BY_NAME:
        return _our_template(documents, path)
    try:
        source = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ValueError(
            f"search.template={path!r} cannot be read ({reason}); name a file, or leave it empty for our wording"
        ) from error
    return PromptTemplate(source, documents, name=path)


@lru_cache
def _our_template(documents: DocumentsPerCompletion, chosen: str) -> PromptTemplate:
    name = f"{chosen}.j2" if chosen else _OURS[documents]
    source = resources.files("zs_nemo.search").joinpath("templates", name).read_text(encoding="utf-8")
    return PromptTemplate(source, documents, name=name, extra_slots=_EXTRA.get(name, ()))


def _in_words(number: int) -> str:
    return _IN_WORDS[number] if number < len(_IN_WORDS) else str(number)


def _messages(environment: SandboxedEnvironment, source: str) -> list[tuple[str, Template]]:
    head, *rest = _MESSAGE.split(source)
    parts = list(zip(rest[::2], rest[1::2], strict=True))
    if head.strip() or not parts:
        parts.insert(0, ("user", head))
    try:
        return [(role, environment.from_string(text)) for role, text in parts]
    except TemplateSyntaxError as error:
        message = f"{error.message} (a message must be whole: no {{% if %}} or {{% for %}} around its beginning)"
        raise TemplateSyntaxError(message, error.lineno) from error


def _listed(slots: list[str]) -> str:
    return ("slots " if len(slots) > 1 else "slot ") + ", ".join(slots)


def _braces(slots: list[str]) -> str:
    return ", ".join("{{ " + slot + " }}" for slot in slots)
