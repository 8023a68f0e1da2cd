"""Small files in the forms of the peers, written by the tests themselves."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zs_nemo.qa.sets.loading import load_set
from zs_nemo.qa.sets.reference import parse_reference
from zs_nemo.qa.sets.rows import SkipBudget
from zs_nemo.types.question import Question

TEMPLATE = "Answer the given question. For example, <answer> Beijing </answer>. Question: {question}\n"


def flashrag(number: int, question: str, *answers: str, split: str = "test", **metadata: Any) -> dict[str, Any]:
    return {
        "id": f"{split}_{number}",
        "question": question,
        "golden_answers": list(answers),
        "metadata": metadata,
    }


def search_r1(number: int, question: str, *answers: str, name: str = "nq", split: str = "test") -> dict[str, Any]:
    return {
        "data_source": name,
        "prompt": [{"role": "user", "content": TEMPLATE.format(question=question)}],
        "ability": "fact-reasoning",
        "reward_model": {"style": "rule", "ground_truth": {"target": list(answers)}},
        "extra_info": {"split": split, "index": number},
    }


def zerosearch(number: int, question: str, *answers: str, name: str = "nq", split: str = "test") -> dict[str, Any]:
    own = flashrag(number, question, *answers, split=split)
    return own | search_r1(number, question, *answers, name=name, split="test")


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    """Write one row a line: bytes as they are, anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows with their nested columns."""
    import duckdb

    path.parent.mkdir(parents=True, exist_ok=True)
    # Next to the first folder, whose name holds no character that would be a pattern.
    lines = write_lines(path.parents[1] / "rows for parquet.json", rows)
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.execute(f"COPY (FROM read_json('{lines}', format='newline_delimited')) TO '{path}' (FORMAT parquet)")
    lines.unlink()
    return path


def load(path: Path | str, max_skipped_rows: int = 0, *, default_split: str = "test") -> list[Question]:
    """Load a set from a file."""
    budget = SkipBudget(max_skipped_rows)
    return load_set(parse_reference(str(path)), budget, default_split=default_split, say=lambda _: None)
