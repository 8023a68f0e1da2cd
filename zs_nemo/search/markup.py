"""Makes text that others wrote harmless: control tags and special tokens in it, and characters that are none."""

import re

from zs_nemo.qa.tags import TAG_NAMES

# Possessive: nothing that follows can begin with one of these, and going back would cost the square of their number.
_INVISIBLE = r"[\s\u00ad\u200b-\u200f\u2060\ufeff]*+"
_TAG = re.compile(
    rf"[<\uff1c\u2039\u3008]{_INVISIBLE}/?{_INVISIBLE}"
    rf"({'|'.join(_INVISIBLE.join(name) for name in TAG_NAMES)})"
    rf"{_INVISIBLE}/?{_INVISIBLE}(?:[>\uff1e\u203a\u3009]|$|(?=<))",
    re.IGNORECASE,
)
_SPECIAL_TOKEN = re.compile(r"<\|(\w{1,64})\|>")


# Not the white space among the control characters: that separates words.
_BROKEN = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffd-\uffff]")


def without_broken_characters(text: str) -> str:
    """Return ``text`` without what stands for no character: lone surrogates, U+FFFD, control characters.

    A tokenizer fails on the first of them. Comes before ``neutralize``: they could hide a tag.
    """
    return _BROKEN.sub("", text)


def neutralize(text: str) -> str:
    """Return ``text`` with every control tag turned into plain words: ``</Information >`` becomes ``(information)``.

    So do the special tokens of chat models, which a tokenizer would read as such: ``<|im_end|>`` becomes ``(im_end)``.
    No angle bracket is left that a parser or a model could take for a tag. Finds any case, white space and invisible
    characters inside the tag, look-alike brackets, and a tag that the end of the text cuts. Text that only becomes a
    tag by this (``<sea<search>rch>``) is treated again.
    """
    while True:
        text, found = _TAG.subn(lambda match: f"({_name(match[1])})", text)
        if not found:
            return _SPECIAL_TOKEN.sub(r"(\1)", text)


def count_control_tags(text: str) -> int:
    """Return how many control tags ``neutralize`` finds in ``text`` as it stands."""
    return len(_TAG.findall(text))


def _name(matched: str) -> str:
    return re.sub(_INVISIBLE, "", matched).lower()
