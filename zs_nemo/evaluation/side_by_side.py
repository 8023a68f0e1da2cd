"""Several runs on one self-contained page, and what it shows as files for a paper: CSV, LaTeX, SVG."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from zs_nemo.evaluation.comparison import LABELS, check_same_questions, compare_evaluations, read_evaluation
from zs_nemo.evaluation.scores import scored_in_both
from zs_nemo.observability import run_tables
from zs_nemo.observability.charts import Interval
from zs_nemo.observability.files import write_text
from zs_nemo.observability.page import page_template
from zs_nemo.observability.report import unscored_lines
from zs_nemo.observability.run_figures import FIGURE_FILES, Figure, curve_figures, score_figures, stage_figure
from zs_nemo.observability.run_tables import NamedRun, read_runs
from zs_nemo.observability.tables import Cell, Column, Table, count

PAGE = "side_by_side.html"


def write_side_by_side(folder: Path | str, paths: Sequence[Path | str], *, bootstrap_samples: int = 2000) -> Path:
    """Write the page, ``tables/`` and ``figures/`` into a folder and return the page.

    The runs are run directories, under way or done, or folders with a kept ``report.json``. Of what the folder holds
    already, only what this function has written for other runs is replaced or removed. Raises ``ValueError`` where
    a file of somebody else's stands in the way.
    """
    folder = Path(folder)
    if (folder / "state.json").exists():
        raise ValueError(f"{folder} is a run directory; give a folder of its own for what is made of several runs")
    files = _files(read_runs(paths), bootstrap_samples)
    _make_room(folder, files)
    for name, text in files.items():
        write_text(folder / name, text)
    return folder / PAGE


def _files(runs: Sequence[NamedRun], bootstrap_samples: int) -> dict[str, str]:
    """Return the text of every file by its name, the page first: by it the folder is known as ours."""
    tables = [
        run_tables.results(runs),
        run_tables.evaluations(runs),
        differences(runs, bootstrap_samples),
        run_tables.settings(runs),
        run_tables.costs(runs),
        run_tables.stages(runs),
    ]
    figures = [*score_figures(runs), *curve_figures(runs), stage_figure(runs)]
    files = {PAGE: _page(runs, tables, figures)}
    files |= {f"tables/{table.name}.csv": table.csv() for table in [*tables, run_tables.curves(runs)]}
    files |= {f"tables/{table.name}.tex": table.latex() for table in tables}
    return files | {f"figures/{figure.name}.svg": svg for figure in figures if (svg := figure.svg()) is not None}


def _make_room(folder: Path, files: Mapping[str, str]) -> None:
    """Remove the figures of other runs, which must not lie among those of these. The tables are the same for all."""
    if (folder / PAGE).exists():
        for pattern in FIGURE_FILES:
            for old in (folder / "figures").glob(pattern):
                old.unlink()
    elif taken := [folder / name for name in files if (folder / name).exists()]:
        raise ValueError(
            f"{taken[0]} is there already, and {folder} has no {PAGE} by which it would be ours to replace; give a "
            "folder of its own, or move the file"
        )


def differences(runs: Sequence[NamedRun], bootstrap_samples: int) -> Table:
    """Return how much better each run is than the first, paired over the questions that both have answered.

    Only run directories hold the answers; evaluations of other questions than the first run's are left out, and so are
    questions whose search failed, or whose time ran out, in either.
    """
    columns = [
        Column(key="run", label="run"),
        Column(key="evaluation", label="evaluation"),
        Column(key="set", label="set"),
        Column(key="questions", label="questions", form=count),
        Column(key="measure", label="measure"),
        Column(key="difference", label="difference", form="{:+.3f}".format),
        Column(key="p", label="p", form="{:.4f}".format),
    ]
    first, *others = runs
    rows: list[list[Cell]] = []
    for run in others:
        for name in run.report["evaluation"]:
            rows += _difference_rows(first, run, name, bootstrap_samples)
    caption = (
        f"Difference from {first.name}: paired over questions, 95 % bootstrap intervals, two-sided p by sign flips."
    )
    return Table(name="differences", caption=caption, columns=columns, rows=rows)


def _difference_rows(first: NamedRun, second: NamedRun, name: str, bootstrap_samples: int) -> list[list[Cell]]:
    files = [run.path / "evaluations" / f"{name}.jsonl" for run in (first, second)]
    if not all(file.is_file() for file in files):
        return []
    own, other = (read_evaluation(file) for file in files)
    try:
        check_same_questions(own, other)
    except ValueError:
        return []
    own, other, _ = scored_in_both(own, other)
    if not own:
        return []
    return [
        [
            second.name,
            name,
            each.set_name or "all",
            each.num_questions,
            LABELS[each.measure],
            Interval(value=each.difference, low=each.ci95[0], high=each.ci95[1]),
            each.p_value,
        ]
        for each in compare_evaluations(own, other, bootstrap_samples=bootstrap_samples)
    ]


def _page(runs: Sequence[NamedRun], tables: Sequence[Table], figures: Sequence[Figure]) -> str:
    by_name = {table.name: table for table in tables}
    return page_template("zs_nemo.evaluation", "side_by_side.html.j2").render(
        runs=runs,
        tables=by_name,
        scores=[figure for figure in figures if figure.name.startswith("f1_")],
        curves=[figure for figure in figures if not figure.name.startswith(("f1_", "stages"))],
        stages=figures[-1],
        unscored=[f"{run.name}, {line}" for run in runs for line in unscored_lines(run.report)],
        unfinished=[run.name for run in runs if not run.report.get("finished")],
        without_curves=[run.name for run in runs if not run.report.get("curves")],
        without_settings=[run.name for run in runs if not run.report.get("settings")],
    )
