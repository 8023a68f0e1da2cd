"""Rebuild the report of a run from its directory, or set several runs side by side.

python recipes/report.py runs/quickstart
python recipes/report.py --table runs/seed1 runs/seed2 runs/seed3     # a Markdown table, for docs/results.md
"""

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument("--table", action="store_true", help="print a Markdown table over the runs; write nothing")
    options = parser.parse_args(arguments)

    from zs_nemo.evaluation.evaluation_report import RECIPE as EVALUATE
    from zs_nemo.evaluation.evaluation_report import write_evaluation_report
    from zs_nemo.observability.files import read_json
    from zs_nemo.observability.report import write_report
    from zs_nemo.observability.results_table import results_table

    try:
        if options.table:
            print(results_table(options.run_dirs), end="")
        else:
            for run_dir in options.run_dirs:
                is_evaluation = read_json(run_dir / "state.json", {}).get("recipe") == EVALUATE
                (write_evaluation_report if is_evaluation else write_report)(run_dir)
                print(run_dir / "report.html")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
