"""Reads the rows of a file, each with its place; what cannot be read is a row too, with the reason."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SHOWN_BAD_ROWS = 5
_PARQUET_BATCH = 1000
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_UTF8_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a set as it is in the file."""

    place: str
    """``nq/test.jsonl:17`` or ``test.parquet, row 17``, counted from 1."""
    values: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """One row that is no question, and why."""

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


class SkipBudget:
    """How many bad rows a run lets pass, over all of its sets."""

    def __init__(self, max_skipped_rows: int) -> None:
        self._max = max_skipped_rows
        self.skipped: list[BadRow] = []

    def skip(self, rows: Sequence[BadRow], of: str) -> None:
        """Count the bad rows of the set ``of``; raise ``ValueError``, naming the first, when they are too many."""
        self.skipped += rows
        if rows and len(self.skipped) > self._max:
            shown = "; ".join(map(str, rows[:_SHOWN_BAD_ROWS])) + ("; ..." if len(rows) > _SHOWN_BAD_ROWS else "")
            raise ValueError(
                f"{of}: {len(rows)} rows cannot be used ({shown}), {len(self.skipped)} in all sets so far, and "
                f"data.max_skipped_rows={self._max} allows {self._max}; mend them, or leave them out with "
                f"data.max_skipped_rows={len(self.skipped)}"
            )


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[Row | BadRow]:
    """Yield the rows of a .jsonl or .parquet file; of the latter those of ``columns`` alone that it has."""
    if not path.is_file():
        raise ValueError(
            f"the set {str(path)!r} is no file on this machine; give the path of a .jsonl or .parquet file"
        )
    return _parquet_rows(path, columns) if path.suffix == ".parquet" else _json_rows(path)


def _json_rows(path: Path) -> Iterator[Row | BadRow]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                if line.startswith(_UTF16_MARKS):
                    raise ValueError(f"{path} is written in UTF-16; convert it: iconv -f UTF-16 -t UTF-8 {path.name}")
                line = line.removeprefix(_UTF8_MARK)
            if line.strip():
                yield _json_row(f"{path}:{number}", line)


def _json_row(place: str, line: bytes) -> Row | BadRow:
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow(place=place, reason=f"byte {error.start} is not UTF-8 ({line[error.start : error.start + 4]!r})")
    except json.JSONDecodeError as error:
        return BadRow(place=place, reason=f"is not JSON ({error.msg} at character {error.pos})")
    except RecursionError:
        return BadRow(place=place, reason="is JSON nested too deeply")
    if not isinstance(values, dict):
        return BadRow(place=place, reason=f"is not a JSON object but a {type(values).__name__}")
    return Row(place=place, values=values)


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[Row | BadRow]:
    try:
        import duckdb
    except ImportError as error:
        raise ValueError(
            f"{path}: Parquet is read by duckdb, which is not installed; run pip install duckdb"
        ) from error
    connection = duckdb.connect(config={"threads": 1})
    source = "FROM read_parquet(?)", [without_patterns(path)]
    try:
        there = [name for name, *_ in connection.execute(f"SELECT * {source[0]} LIMIT 0", source[1]).description]
        # A file of unknown columns is read whole, so that they can be named.
        found = [name for name in columns if name in there] or there
        selected = ", ".join('"' + name.replace('"', '""') + '"' for name in found)
        connection.execute(f"SELECT {selected} {source[0]}", source[1])
        number = 0
        while batch := connection.fetchmany(_PARQUET_BATCH):
            for values in batch:
                number += 1
                yield Row(place=f"{path}, row {number}", values=dict(zip(found, values, strict=True)))
    except duckdb.Error as error:
        # Text that is not UTF-8 is among these: Parquet knows no other text, so that the file as a whole is broken.
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} cannot be read as Parquet ({reason}); write it anew, or give it as .jsonl") from error
    finally:
        connection.close()


def without_patterns(path: Path) -> str:
    """Return the path for DuckDB: characters that would match other names in brackets, where they match themselves."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in str(path))
