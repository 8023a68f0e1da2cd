"""A chart as an SVG file of its own, with its colours and its legend, for a paper or a slide."""

from collections.abc import Sequence
from xml.etree import ElementTree

from markupsafe import Markup, escape

from zs_nemo.observability.charts import WIDTH

Legend = Sequence[tuple[str, int, bool]]
"""(label, colour, dashed) of every line."""

PALETTE = ("#1f6feb", "#d9822b", "#8a5cd1", "#c2416b", "#8a94a3", "#4b5563")
"""The light colours 1 to 6 of the pages' style sheet."""

_TITLE_HEIGHT, _LINE_HEIGHT = 24.0, 16.0
_STYLE = """
text { fill: #5b6675; font: 11px system-ui, "Helvetica Neue", "DejaVu Sans", sans-serif; }
.title { fill: #17202b; font-size: 13px; font-weight: 600; } .name { fill: #17202b; } .unit { font-style: italic; }
.grid { stroke: #dfe3e8; } polyline, .key { fill: none; stroke-width: 2; stroke-linejoin: round; }
.before line { stroke: #8a94a3; stroke-width: 2; } .after line { stroke: #1f6feb; stroke-width: 2; }
.before circle { fill: #ffffff; stroke: #8a94a3; stroke-width: 2; } .after circle { fill: #1f6feb; stroke: #1f6feb; }
"""


def figure_file(chart: Markup, title: str, legend: Legend = ()) -> str | None:
    """Return the text of the file; None for a chart that has nothing to show."""
    root = ElementTree.fromstring(chart)
    if root.tag != "svg":
        return None
    height = float(root.attrib["viewBox"].split()[3])
    keys, below = _keys(legend, _TITLE_HEIGHT + height + 12)
    colors = "".join(
        f".l{index} {{ stroke: {color}; }} .f{index} {{ fill: {color}; }}\n" for index, color in enumerate(PALETTE, 1)
    )
    placed = str(chart).replace("<svg ", f'<svg y="{_TITLE_HEIGHT:g}" width="{WIDTH:g}" height="{height:g}" ', 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {below:g}" width="{WIDTH:g}" '
        f'height="{below:g}">\n<style>{_STYLE}{colors}</style>\n<rect width="100%" height="100%" fill="#ffffff"/>\n'
        f'<text class="title" x="2" y="15">{escape(title)}</text>\n{placed}\n{keys}</svg>\n'
    )


def _keys(legend: Legend, top: float) -> tuple[str, float]:
    """Return the legend, one line below another, and where it ends."""
    parts = []
    for index, (label, color, dashed) in enumerate(legend):
        y = top + _LINE_HEIGHT * index
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        parts.append(
            f'<line class="key l{color}" x1="4" x2="24" y1="{y:g}" y2="{y:g}"{dash}/>'
            f'<text class="name" x="30" y="{y + 4:g}">{escape(label)}</text>\n'
        )
    return "".join(parts), top + _LINE_HEIGHT * len(legend)
