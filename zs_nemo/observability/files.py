"""Files that are whole or absent: what a crash or a kill at any moment may leave in a run directory."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

CHECKSUMS = "checksums.json"
"""In a folder of a checkpoint: bytes and checksum by file, as they were written."""


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step: a reader sees the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_between_marks(page: Path, mark: str, text: str) -> None:
    """Replace what stands in ``page`` between the lines ``<!-- MARK -->`` and ``<!-- end of MARK -->``.

    Raises ``ValueError`` where the page has not both, in this order.
    """
    begin, end = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->"
    before, has_begin, rest = page.read_text(encoding="utf-8").partition(begin)
    _, has_end, after = rest.partition(end)
    if not (has_begin and has_end):
        raise ValueError(f"{page} has no lines {begin.strip()!r} and {end!r}; write them where the text belongs")
    write_text(page, f"{before}{begin}{text}{end}{after}")


def write_json(path: Path, value: Any) -> None:
    """Write one indented JSON document in one step."""
    write_text(path, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line in one step."""
    write_text(path, "".join(json_line(row) for row in rows))


def json_line(row: Mapping[str, Any]) -> str:
    """Return one line of strict JSON. NaN and infinities, which JSON lacks, become null."""
    return json.dumps(_finite(row), ensure_ascii=False, allow_nan=False) + "\n"


def append_json_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append one object, safe on disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json_line(row))
        file.flush()
        os.fsync(file.fileno())


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read one object a line; an absent file is empty.

    A last line that is cut off and has no newline was torn by a crash and is passed over. Any other unreadable line
    raises ``ValueError`` with file and line.
    """
    if not path.exists():
        return []
    rows = []
    # As bytes: a crash can cut within a character. And not splitlines: it also cuts at characters such as U+2028,
    # which JSON strings may hold.
    *whole, last = path.read_bytes().split(b"\n")
    for number, line in enumerate(whole, start=1):
        try:
            rows.append(json.loads(line))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}:{number} is not a JSON object ({error}); delete the line or the file") from error
    with suppress(json.JSONDecodeError, UnicodeDecodeError):
        row = json.loads(last)
        # Many an editor ends a file without a newline. Torn off, an object is never whole.
        rows += [row] if isinstance(row, dict) else []
    return rows


def drop_torn_line(path: Path) -> None:
    """Remove what a crash in the middle of an append has left at the end: the next one must not continue it."""
    if path.exists():
        text = path.read_bytes()
        if text and not text.endswith(b"\n"):
            write_json_lines(path, read_json_lines(path))


def read_json(path: Path, default: Any) -> Any:
    """Read one JSON document, or return ``default`` for an absent file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default


def wrong_length(path: Path, expected: int) -> str | None:
    """Return how the length of a file differs from the expected one; None if it does not."""
    if not path.is_file():
        return f"{path} is missing"
    held = path.stat().st_size
    return None if held == expected else f"{path} has {held} bytes instead of {expected}"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
