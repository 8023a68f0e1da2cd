"""Build the BM25 index of a corpus in Search-R1's form, and print where it lies.

    python recipes/build_index.py wiki.jsonl
    python recipes/build_index.py wiki.jsonl --cache indexes

The corpus is one JSON object a line: {"id": "7", "contents": "\\"Title\\"\\ntext"}. A line that cannot be read is
refused with its number. The index is found again by what the corpus holds, so ``search=bm25 search.corpus=wiki.jsonl``
and ``recipes/serve_search.py`` start at once; after ``--cache`` they need the same folder in ZS_NEMO_CACHE. Built
already, it is left as it is. Texts and terms are held in memory, about 15 times the size of the file.
"""

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help='JSON lines of {"id", "contents"}')
    parser.add_argument("--cache", type=Path, help="folder for the index; default: $ZS_NEMO_CACHE or ~/.cache/zs_nemo")
    options = parser.parse_args(arguments)

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from zs_nemo.search.bm25 import build_index

    columns = (TextColumn("{task.description:<20}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    tasks: dict[str, TaskID] = {}
    try:
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:

            def show(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = progress.add_task(stage)
                # A stage of one piece shows a bar that only moves.
                progress.update(tasks[stage], completed=done, total=None if done == 0 and total == 1 else total)

            built = build_index(options.corpus, options.cache, show)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing is left behind", file=sys.stderr)
        return 130
    print(f"{built.num_documents:,} documents, {'built' if built.is_new else 'was there already'}: {built.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
