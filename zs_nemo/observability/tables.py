"""Tables that are written in several forms: CSV for programs, LaTeX (booktabs) for papers, Markdown, text for pages."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zs_nemo.observability.charts import Interval
from zs_nemo.observability.report import ABSENT

Cell = str | float | Interval | None
"""None stands for what was not measured."""

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\N{EN DASH}": "--",
        "\N{RIGHTWARDS ARROW}": r"$\rightarrow$",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        **{character: f"\\{character}" for character in "&%$#_{}"},
    }
)


def score(value: float) -> str:
    """Write a score or a share by its first three decimals."""
    return f"{value:.3f}"


def count(value: float) -> str:
    """Write a count with separators."""
    return f"{value:,.0f}"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column."""

    key: str
    """Its name in CSV."""
    label: str
    """Its name for people."""
    form: Callable[[float], str] = "{:.6g}".format
    """How a number is written for people; CSV has it in full."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells; a cell with an interval becomes three columns in CSV."""

    name: str
    """Of its files, without an ending."""
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]

    def texts(self) -> list[list[str]]:
        """Return the cells as people read them."""
        return [[_text(cell, column) for cell, column in zip(row, self.columns, strict=True)] for row in self.rows]

    def is_number(self, index: int) -> bool:
        """Return whether the column holds numbers, which stand to the right."""
        return any(not isinstance(row[index], str | None) for row in self.rows)

    def markdown(self) -> str:
        """Return the table as Markdown."""
        lines = [[column.label for column in self.columns]]
        lines.append(["---:" if self.is_number(index) else "---" for index in range(len(self.columns))])
        return "".join("| " + " | ".join(line) + " |\n" for line in [*lines, *self.texts()])

    def csv(self) -> str:
        """Return the table as CSV, numbers in full, an empty field for what was not measured."""
        having = [any(isinstance(row[index], Interval) for row in self.rows) for index in range(len(self.columns))]
        head = [
            name
            for column, has_interval in zip(self.columns, having, strict=True)
            for name in ([column.key, f"{column.key}_low", f"{column.key}_high"] if has_interval else [column.key])
        ]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(head)
        for row in self.rows:
            cells = zip(row, having, strict=True)
            writer.writerow([value for cell, has_interval in cells for value in _values(cell, has_interval)])
        return text.getvalue()

    def latex(self) -> str:
        r"""Return a LaTeX table; its document needs ``\usepackage{booktabs}``."""
        sides = "".join("r" if self.is_number(index) else "l" for index in range(len(self.columns)))
        lines = [_latex_line([column.label for column in self.columns]), r"    \midrule"]
        lines += [_latex_line(row) for row in self.texts()]
        return "\n".join(
            [
                r"% \usepackage{booktabs}",
                r"\begin{table}[t]",
                r"  \centering\footnotesize\setlength{\tabcolsep}{3pt}",
                rf"  \caption{{{self.caption.translate(_LATEX)}}}",
                rf"  \label{{tab:{self.name}}}",
                rf"  \begin{{tabular}}{{{sides}}}",
                r"    \toprule",
                *lines,
                r"    \bottomrule",
                r"  \end{tabular}",
                r"\end{table}",
                "",
            ]
        )


def _text(cell: Cell, column: Column) -> str:
    if cell is None:
        return ABSENT
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Interval):
        return f"{column.form(cell.value)} [{column.form(cell.low)}, {column.form(cell.high)}]"
    return column.form(cell)


def _values(cell: Cell, has_interval: bool) -> list[str | float | None]:
    if isinstance(cell, Interval):
        return [cell.value, cell.low, cell.high]
    return [cell, None, None] if has_interval else [cell]


def _latex_line(cells: Sequence[str]) -> str:
    # A row that begins with a bracket would be taken for the optional argument of the line break before it.
    return "    {}" + " & ".join(cell.translate(_LATEX) for cell in cells) + r" \\"
