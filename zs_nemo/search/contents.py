"""Documents in Search-R1's form: a text whose first line is its title in double quotes."""

import re

NO_TITLE = "No title."
"""What Search-R1's servers write where a document has none."""
_TITLED = re.compile(r'"([^\n]*)"\n(.*)', re.DOTALL)


def with_title(title: str, text: str) -> str:
    """Return '"Title"' and the text on the next lines."""
    return f'"{title}"\n{text}'


def split_contents(contents: str) -> tuple[str, str]:
    """Return (title, text); the title is empty where there is none."""
    match = _TITLED.fullmatch(contents)
    return (match[1], match[2]) if match else ("", contents)


def to_contents(document_text: str) -> str:
    """Return the text of a document with a title line, which Search-R1's clients take away as the title."""
    return document_text if _TITLED.fullmatch(document_text) else with_title(NO_TITLE, document_text)


def from_contents(contents: str) -> str:
    """Undo ``to_contents``: a title line that says there is no title is dropped."""
    title, text = split_contents(contents)
    return text if title == NO_TITLE and text.strip() else contents
