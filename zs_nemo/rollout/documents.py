"""Search results as token ids that fit a budget."""

from functools import lru_cache

from zs_nemo.qa.prompts import INFORMATION_FOOTER, INFORMATION_HEADER, NOTHING_FOUND, document_line
from zs_nemo.search.markup import neutralize, without_broken_characters
from zs_nemo.types.generation import Tokenizer
from zs_nemo.types.search import Document


def information_tokens(documents: tuple[Document, ...], tokenizer: Tokenizer, max_tokens: int) -> list[int]:
    """Return the <information> block in at most ``max_tokens`` ids; the closing tag is always there.

    Control tags inside documents are neutralised, broken characters removed. Documents come in the engine's order; the
    one that does not fit is cut, those after it are left out. No document at all gives a notice in their place.
    """
    if not documents:
        return tokenizer.encode(NOTHING_FOUND, add_special_tokens=False)
    header, footer, newline = (
        _fixed_tokens(tokenizer, text) for text in (INFORMATION_HEADER, INFORMATION_FOOTER, "\n")
    )
    ids = list(header)
    room = max_tokens - len(ids) - len(footer)
    for number, document in enumerate(documents, start=1):
        text = neutralize(without_broken_characters(document.text))
        line = tokenizer.encode(document_line(number, text), add_special_tokens=False)
        if len(line) > room:
            kept = max(room - len(newline), 0)
            ids += [*line[:kept], *(newline if kept else ())]
            break
        ids += line
        room -= len(line)
    return [*ids, *footer]


@lru_cache(maxsize=16)
def _fixed_tokens(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Return the tokens of a text that stands in every block; with thousands of episodes its encoding would count."""
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def smallest_information_block(tokenizer: Tokenizer) -> int:
    """Return the number of tokens of a block without documents, the least that a budget must allow."""
    return len(tokenizer.encode(NOTHING_FOUND, add_special_tokens=False))
