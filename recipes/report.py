"""Rebuild the report of any recipe's run from its directory, or set several runs side by side.

A run is its directory, under way or done; with --table and --side-by-side also a folder with its report.json alone.

python recipes/report.py runs/quickstart
python recipes/report.py --table runs/seed1 runs/seed2 runs/seed3     # a Markdown table
python recipes/report.py --table runs/judged runs/other               # also of recipes/evaluate.py's, ...
python recipes/report.py --table runs/quality                         # ... and of recipes/evaluate_simulator.py's
python recipes/report.py --table runs/*/ --by curriculum.name         # with a column for what the runs differ in
python recipes/report.py --side-by-side compared runs/seed1 docs/results/*/   # a page; CSV, LaTeX and SVG for a paper
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument("--table", action="store_true", help="print a Markdown table over the runs; write nothing")
    parser.add_argument(
        "--into",
        nargs=2,
        metavar=("PAGE", "MARK"),
        help="with --table: write it between the lines <!-- MARK --> and <!-- end of MARK --> of a page instead",
    )
    parser.add_argument(
        "--by",
        nargs="+",
        default=[],
        metavar="SETTING",
        help="with --table: settings that have a column each, and by which runs are averaged, such as curriculum.name",
    )
    parser.add_argument(
        "--side-by-side",
        type=Path,
        metavar="FOLDER",
        help="write one page over all runs into FOLDER, its tables as CSV and LaTeX and its figures as SVG",
    )
    options = parser.parse_args(arguments)
    if (options.into or options.by) and not options.table:
        parser.error("--into and --by are about a table; give --table as well")

    from zs_nemo.evaluation.evaluation_report import RECIPE as EVALUATE
    from zs_nemo.evaluation.evaluation_report import write_evaluation_report
    from zs_nemo.evaluation.side_by_side import write_side_by_side
    from zs_nemo.observability.files import read_json, write_between_marks
    from zs_nemo.observability.preparation_page import write_preparation_page
    from zs_nemo.observability.report import OTHER_REPORTS, write_report

    writers: dict[str, Callable[[Path], object]] = {
        EVALUATE: write_evaluation_report,
        **dict.fromkeys(OTHER_REPORTS, write_preparation_page),
    }
    try:
        if options.table:
            table = markdown_table(options.run_dirs, by=options.by)
            if options.into:
                write_between_marks(Path(options.into[0]), options.into[1], table)
            else:
                print(table, end="")
        elif options.side_by_side:
            print(write_side_by_side(options.side_by_side, options.run_dirs))
        else:
            for run_dir in options.run_dirs:
                recipe = read_json(run_dir / "state.json", {}).get("recipe")
                writers.get(recipe, write_report)(run_dir)
                print(run_dir / "report.html")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def markdown_table(run_dirs: Sequence[Path], *, by: Sequence[str]) -> str:
    """Return the table of training runs, of evaluations or of measured simulators.

    Raises ``ValueError`` for runs of several kinds, and for those that are not averaged with ``by``.
    """
    from zs_nemo.evaluation.evaluation_report import RECIPE as EVALUATE
    from zs_nemo.evaluation.simulator_page import quality_table, read_quality_report
    from zs_nemo.observability.results_table import results_table
    from zs_nemo.observability.run_tables import evaluations, read_runs

    simulators = [report for report in map(read_quality_report, run_dirs) if report is not None]
    runs = read_runs(run_dirs) if not simulators else []
    of_evaluations = [run.report["recipe"] == EVALUATE for run in runs]
    if not simulators and not any(of_evaluations):
        return results_table(run_dirs, by=by)
    if len(simulators) not in (0, len(run_dirs)) or not all(of_evaluations):
        raise ValueError("--table shows training runs, evaluations or measured simulators; name one kind alone")
    if by:
        raise ValueError("--by is for training runs; evaluations and measured simulators are not averaged")
    return (quality_table(simulators) if simulators else evaluations(runs)).markdown()


if __name__ == "__main__":
    sys.exit(main())
