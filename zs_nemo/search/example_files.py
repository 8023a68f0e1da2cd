"""The files of judged searches that a simulator learns from: JSON lines or Parquet, the same fields in both.

Owns their names and the columns of the second. What a row means is in ``types/interaction.py``.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zs_nemo.config.collect import ExamplesFormat
from zs_nemo.observability.files import read_json_lines, write_json_lines
from zs_nemo.qa.sets.rows import Row, read_rows, without_patterns

COLUMNS = {
    "id": "VARCHAR",
    "question_id": "VARCHAR",
    "question": "VARCHAR",
    "answers": "VARCHAR[]",
    "split": "VARCHAR",
    "turn": "INTEGER",
    "query": "VARCHAR",
    "engine": "VARCHAR",
    "documents": "STRUCT(text VARCHAR, id VARCHAR, score DOUBLE, noisy BOOLEAN)[]",
    "prediction": "VARCHAR",
    "outcome": "DOUBLE",
    "useful": "BOOLEAN",
}
"""Of a Parquet file, with their types as DuckDB names them: the fields of an ``Interaction``, and the verdict."""


def write_examples(folder: Path, split: str, rows: Sequence[Mapping[str, Any]], form: ExamplesFormat) -> None:
    """Write one part of a collection, whole or not at all."""
    lines = _path(folder, split, ExamplesFormat.jsonl)
    write_json_lines(lines, rows)
    if form is ExamplesFormat.parquet:
        _to_parquet(lines, _path(folder, split, form))
        lines.unlink()


def examples_file(folder: str, split: str) -> Path:
    """Return the file of one part of a collection; raise ``ValueError`` if there is none, or one of either form."""
    paths = [_path(Path(folder).expanduser(), split, form) for form in ExamplesFormat]
    found = [path for path in paths if path.is_file()]
    names = [path.name for path in paths]
    if not found:
        raise ValueError(
            f"sft.examples={folder!r} holds no {' or '.join(names)}; name the run directory of a finished "
            "recipes/collect_interactions.py"
        )
    if len(found) > 1:
        raise ValueError(f"sft.examples={folder!r} holds both {' and '.join(names)}; remove the one that is not meant")
    return found[0]


def read_examples(path: Path) -> list[Mapping[str, Any]]:
    """Return the rows of one file; raise ``ValueError`` for one that cannot be read."""
    if path.suffix == ".parquet":
        return [row.values for row in read_rows(path, tuple(COLUMNS)) if isinstance(row, Row)]
    return list(read_json_lines(path))


def _path(folder: Path, split: str, form: ExamplesFormat) -> Path:
    return folder / f"examples_{split}.{form.name}"


def _to_parquet(lines: Path, path: Path) -> None:
    import duckdb

    # Typed: what is null in every row, or of a file without rows, would otherwise have no type of its own.
    types = ", ".join(f"{name}: '{kind}'" for name, kind in COLUMNS.items())
    source = f"SELECT * FROM read_json(?, format='newline_delimited', columns={{{types}}})"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.execute(f"COPY ({source}) TO ? (FORMAT parquet)", [without_patterns(lines), str(temporary)])
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
