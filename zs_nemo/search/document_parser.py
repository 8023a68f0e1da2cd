"""Finds the documents in what a simulator wrote, mends them and counts what was wrong.

Defects, as they are counted in ``SearchResult.defects``:

- ``empty``: nothing that can be shown. ``filtered``: nothing, because the server's content filter withheld it.
- ``missing``: so many documents fewer than were asked for. ``surplus``: so many more, which are left out.
- ``cut``: the completion reached its limit; the last document ends at its last whole sentence, else word.
- ``too_long``: a document was over its budget of tokens and is cut in the same way.
- ``control_tag``: so many of our own tags, made harmless.
- ``prompt_echo``: the model repeated its prompt or went on with the fields of one; that is removed.
- ``reasoning``: the completion began with a block of thoughts; they are removed.
- ``broken_unicode``: characters that stand for none (lone surrogates, U+FFFD, control characters) were removed.
- ``leak``: so many noisy documents held a gold answer, those that were drawn again among them.
"""

import re
from collections import Counter
from dataclasses import dataclass

from zs_nemo.search.markup import count_control_tags, neutralize, without_broken_characters
from zs_nemo.search.simulator_prompts import one_line
from zs_nemo.types.completion import Prompt, TextCompletion
from zs_nemo.types.generation import Completion, StopReason, Tokenizer

MAX_COMPLETION_CHARACTERS = 200_000
"""Of more than this nothing is looked at."""
CHARACTERS_PER_TOKEN = 4
"""An estimate for English, where no tokenizer is at hand."""
_MOST_CHARACTERS_PER_TOKEN = 32
_MIN_WORDS_WHEN_CUT = 4
_MIN_ECHO_CHARACTERS = 20
_SPECIAL_TOKEN = re.compile(r"<\|[^|<>]*\|>")
"""Such as <|im_end|>, with which the model ends its text."""
_PROMPT_FIELDS = re.compile(r"\b(Question|Query|Text|Text that (?:mentions|leads to) [^:]{0,1000}):", re.IGNORECASE)
_FIELD_AT_LINE_START = re.compile(r"^[ \t*#]*(?:Search query|Query|Question|Answers?)[ \t]*[*]*:", re.I | re.M)
_REASONING = re.compile(r"\s*<think>.*?(?:</think>|\Z)|(?:(?!<think>).)*?\n[ \t]*</think>[ \t]*\n", re.DOTALL)
"""Some chat templates open the thoughts themselves: then the model only closes them, on a line of its own. Anywhere
else the tag is part of a document."""
_MARK = r"[ \t>#*_•-]{0,8}"
_NAME = r"(?:doc|document|passage|result|snippet)[ \t]{0,2}#?[ \t]{0,2}(\d{1,3})"
_END = r"[*_]{0,3}[ \t]{0,2}(?:[:.)\]–-][*_]{0,3}|(?=\()|(?=\n|\Z))"
_HEADERS = (
    re.compile(rf"^{_MARK}\[?{_NAME}{_END}", re.IGNORECASE | re.MULTILINE),
    re.compile(rf"^{_MARK}\[?(\d{{1,3}})[*_]{{0,3}}[.):\]][*_]{{0,3}}(?=\s)", re.MULTILINE),
    re.compile(rf"(?<![A-Za-z0-9])[*_\[]{{0,3}}{_NAME}[*_]{{0,3}}[ \t]{{0,2}}:", re.IGNORECASE),
)
"""The forms of "Doc 1: ...", also as a heading without a mark after it, and "1. ..." at the start of a line, and
"Doc 1: ..." anywhere; of equals the first."""
_BULLET = re.compile(r"^[ \t]*[-*•][ \t]+", re.MULTILINE)
_PREAMBLE = re.compile(r"[^\n]{0,300}:\s*")


@dataclass(frozen=True, kw_only=True)
class DocumentBudget:
    """How long one document may be."""

    max_tokens: int
    tokenizer: Tokenizer | None = None
    """Counts the tokens; without one they are estimated from the characters."""

    def cut(self, text: str) -> str:
        """Return ``text`` if it fits, else as much of it as does, up to a whole sentence or word."""
        if self.tokenizer is None:
            kept = text[: self.max_tokens * CHARACTERS_PER_TOKEN]
        else:
            kept = text[: self.max_tokens * _MOST_CHARACTERS_PER_TOKEN]
            ids = self.tokenizer.encode(kept, add_special_tokens=False)
            if len(ids) > self.max_tokens:
                kept = self.tokenizer.decode(ids[: self.max_tokens]).replace("\ufffd", "")
        return text if kept == text else without_cut_end(kept)


def parse_documents(
    completion: TextCompletion, num_documents: int, *, prompt: Prompt = "", budget: DocumentBudget | None = None
) -> tuple[tuple[str, ...], Counter[str]]:
    """Return the documents of one completion, at most ``num_documents``, and what was wrong with them.

    Understands ``Doc 1: ...``, ``[1] ...``, ``1. ...``, bullets, paragraphs and lines. Numbers must count up, so that a
    number at the start of a line within a document does not end it. ``prompt`` is what the model may have repeated.
    """
    defects: Counter[str] = Counter()
    whole = completion.text[:MAX_COMPLETION_CHARACTERS]
    is_cut = completion.stop_reason is StopReason.length or len(whole) < len(completion.text)
    if len(whole) < len(completion.text):
        defects["too_long"] += 1
    text, found = _readable(whole)
    defects += found
    pieces = _pieces(text, num_documents, _lines_of(prompt), defects)
    if len(pieces) > num_documents:
        defects["surplus"] += len(pieces) - num_documents
        pieces = pieces[:num_documents]
    elif is_cut and pieces:
        defects["cut"] += 1
        pieces[-1] = without_cut_end(one_line(pieces[-1]))
    documents = []
    for piece in pieces:
        document, found = _finished(piece, budget)
        defects += found
        if document:
            documents.append(document)
    if not documents:
        defects["empty"] += 1
    elif len(documents) < num_documents:
        defects["missing"] += num_documents - len(documents)
    return tuple(documents), defects


def mend(completion: Completion | TextCompletion, budget: DocumentBudget | None = None) -> tuple[str, Counter[str]]:
    """Return the one document in a completion, its first line after any thoughts, and what was wrong with it.

    It may be empty.
    """
    text, defects = _without_thoughts(_SPECIAL_TOKEN.sub(" ", completion.text[:MAX_COMPLETION_CHARACTERS]))
    text, line_break, _ = text.lstrip().partition("\n")
    if echo := _PROMPT_FIELDS.search(text):
        defects["prompt_echo"] += 1
        text = text[: echo.start()]
    elif completion.stop_reason is StopReason.length and not line_break:
        defects["cut"] += 1
        text = without_cut_end(text)
    if (whole := without_broken_characters(text)) != text:
        defects["broken_unicode"] += 1
        text = whole
    text, found = _finished(text, budget)
    defects += found
    if not text:
        defects["empty"] += 1
    return text, defects


def without_cut_end(text: str) -> str:
    """Return ``text`` up to its last whole sentence if that has a few words, else up to its last whole word."""
    sentence = re.match(r".*[.!?](?=\s|$)", text)
    if sentence and len(sentence[0].split()) >= _MIN_WORDS_WHEN_CUT:
        return sentence[0]
    head, space, _ = text.rpartition(" ")
    return head if space else text


def _readable(text: str) -> tuple[str, Counter[str]]:
    """Return a completion without special tokens, thoughts and characters that are none."""
    text, defects = _without_thoughts(_SPECIAL_TOKEN.sub(" ", text).replace("\r\n", "\n").replace("\r", "\n"))
    if (whole := without_broken_characters(text)) != text:
        defects["broken_unicode"] += 1
        text = whole
    return text, defects


def _without_thoughts(text: str) -> tuple[str, Counter[str]]:
    thoughts = _REASONING.match(text)
    return (text[thoughts.end() :], Counter(reasoning=1)) if thoughts else (text, Counter())


def _finished(text: str, budget: DocumentBudget | None) -> tuple[str, Counter[str]]:
    """Return a document on one line, without our tags and within its budget; empty if it says nothing."""
    defects: Counter[str] = Counter()
    if tags := count_control_tags(text):
        defects["control_tag"] += tags
    text = one_line(neutralize(text))
    if budget is not None and (kept := budget.cut(text)) != text:
        defects["too_long"] += 1
        text = kept
    if not any(character.isalnum() for character in text):
        return "", defects
    return text, defects


def _pieces(text: str, num_documents: int, prompt_lines: frozenset[str], defects: Counter[str]) -> list[str]:
    """Cut a completion into documents; pieces without a word are left out."""
    numbered = max((_split_at(text, header) for header in _HEADERS), key=lambda cut: min(len(cut), num_documents))
    kept = []
    for piece in numbered or _unnumbered(text, num_documents):
        # After a header a document may begin with any word; a field of a prompt stands on a line of its own.
        own = _without_echo(piece, prompt_lines, start=len(piece.partition("\n")[0]) if numbered else 0)
        if own != piece:
            defects["prompt_echo"] += 1
        if any(character.isalnum() for character in own):
            kept.append(own.strip(" \t\n*_"))
    return kept


def _split_at(text: str, header: re.Pattern[str]) -> list[str]:
    """Return what stands between headers that count up from 1 (or 0); none if there is no such header.

    A prompt may end with "Doc 1:" itself: then the text begins with the first document, and the first header is 2.
    """
    places: list[tuple[int, int]] = []
    expected: int | None = None
    starts_within = False
    for match in header.finditer(text):
        number = int(match[1])
        if expected is None and number in (0, 1, 2):
            starts_within = number == 2 and bool(text[: match.start()].strip())
            if number == 2 and not starts_within:
                continue
        elif number != expected:
            continue
        places.append((match.start(), match.end()))
        expected = number + 1
    if not places:
        return []
    ends = [start for start, _ in places[1:]] + [len(text)]
    pieces = [text[end:stop] for (_, end), stop in zip(places, ends, strict=True)]
    return [text[: places[0][0]], *pieces] if starts_within else pieces


def _unnumbered(text: str, num_documents: int) -> list[str]:
    """Return bullets, else paragraphs, else lines; all of it where one document is asked for."""
    if preamble := _PREAMBLE.match(text.lstrip()):
        rest = text.lstrip()[preamble.end() :]
        if "\n" in preamble[0] and rest.strip():
            text = rest
    if num_documents == 1:
        return [text] if text.strip() else []
    for pieces in (_BULLET.split(text)[1:], re.split(r"\n[ \t]*\n", text)):
        pieces = [piece for piece in pieces if piece.strip()]
        if len(pieces) > 1:
            return pieces
    return [line for line in text.split("\n") if line.strip()]


def _without_echo(piece: str, prompt_lines: frozenset[str], *, start: int) -> str:
    """Return a piece without lines of the prompt, and without all that follows a field of a prompt after ``start``."""
    if field := _FIELD_AT_LINE_START.search(piece, start):
        piece = piece[: field.start()]
    lines = piece.split("\n")
    kept = [line for line in lines if one_line(line) not in prompt_lines]
    return piece if len(kept) == len(lines) else "\n".join(kept)


def _lines_of(prompt: Prompt) -> frozenset[str]:
    texts = [prompt] if isinstance(prompt, str) else [message.content for message in prompt]
    lines = (one_line(line) for text in texts for line in text.split("\n"))
    return frozenset(line for line in lines if len(line) >= _MIN_ECHO_CHARACTERS)
