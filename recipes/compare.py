"""Compare two evaluations of the same questions: difference, 95 % interval and p-value, as a Markdown table.

python recipes/compare.py runs/a runs/b                                  # both after training, greedy, on BM25
python recipes/compare.py runs/a runs/b --evaluation after_bm25_temperature_1
python recipes/compare.py runs/a/evaluations/before_bm25_greedy.jsonl runs/a/evaluations/after_bm25_greedy.jsonl
python recipes/compare.py runs/evaluation runs/another                   # of recipes/evaluate.py: their first methods
python recipes/compare.py runs/evaluation runs/another --evaluation direct_closed_book_greedy
"""

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, metavar="A", help="a run directory, or evaluations/NAME.jsonl of one")
    parser.add_argument("second", type=Path, metavar="B")
    parser.add_argument(
        "--evaluation",
        metavar="NAME",
        help="which one of a run directory (default: after_bm25_greedy of a training run, the first of an evaluation)",
    )
    parser.add_argument(
        "--samples", type=int, default=10_000, help="resamples, and as many sign flips (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the resamples (default: %(default)s)")
    options = parser.parse_args(arguments)

    from zs_nemo.evaluation.comparison import compare_evaluations, comparison_table, read_evaluation
    from zs_nemo.evaluation.manifest import manifest_differences
    from zs_nemo.evaluation.scores import scored_in_both

    try:
        if options.samples < 1:
            raise ValueError(f"--samples={options.samples} must be at least 1; 10000 is usual")
        files = [_rows_file(path, options.evaluation) for path in (options.first, options.second)]
        first, second, failed = scored_in_both(*(read_evaluation(file) for file in files))
        differences = compare_evaluations(first, second, bootstrap_samples=options.samples, seed=options.seed)
        changed = manifest_differences(*files)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(comparison_table(differences, ("A", "B")), end="")
    print(f"\nA: `{options.first}`, B: `{options.second}`; scores in percent, the difference is B less A.")
    print(
        f"Paired over questions: intervals by bootstrap, {options.samples:,} resamples, p by sign flips; * marks "
        "p < 0.05, two-sided."
    )
    if failed:
        some = ", ".join(failed[:5])
        print(f"{len(failed)} questions are left out, because their search failed or their time ran out: {some}")
    if changed:
        print("\nThe conditions differ besides the policy:\n" + "".join(f"- {each}\n" for each in changed), end="")
    return 0


def _rows_file(path: Path, evaluation: str | None) -> Path:
    if not path.is_dir():
        return path
    from zs_nemo.observability.files import read_json

    first = next(iter(read_json(path / "manifest.json", {}).get("evaluations", {})), "after_bm25_greedy")
    return path / "evaluations" / f"{evaluation or first}.jsonl"


if __name__ == "__main__":
    sys.exit(main())
