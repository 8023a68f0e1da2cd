import re
from importlib.resources import files
from xml.etree import ElementTree

from markupsafe import Markup

from zs_nemo.observability.charts import Series, line_chart, part_chart
from zs_nemo.observability.figure_file import PALETTE, figure_file


def test_a_figure_stands_by_itself_with_title_colours_and_legend() -> None:
    chart = line_chart([Series(label="a", points=[(0, 1.0), (1, 2.0)], color=3, dashed=True)], unit="F1")
    text = figure_file(chart, "Reward & more", [("a<b", 3, True)])
    assert text is not None
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "Reward & more" in words and "a<b" in words
    keys = [line for line in root.iter("{http://www.w3.org/2000/svg}line") if line.attrib["class"] == "key l3"]
    assert len(keys) == 1 and "stroke-dasharray" in keys[0].attrib
    assert float(keys[0].attrib["y1"]) < float(root.attrib["height"])
    assert f".l3 {{ stroke: {PALETTE[2]}; }}" in text and "var(" not in text


def test_a_chart_without_anything_to_show_gives_no_file() -> None:
    assert figure_file(line_chart([], unit="F1"), "Reward") is None
    assert figure_file(Markup('<p class="empty">Nothing was logged.</p>'), "Reward") is None


def test_files_have_the_light_colours_of_the_pages() -> None:
    style = files("zs_nemo.observability").joinpath("page_style.html.j2").read_text(encoding="utf-8")
    first_of_each = {int(index): color for index, color in reversed(re.findall(r"--c(\d): (#\w+);", style))}
    assert tuple(first_of_each[index] for index in range(1, 7)) == PALETTE


def test_the_parts_of_a_bar_stand_end_to_end_over_one_axis() -> None:
    chart = part_chart([("a", [1.0, 3.0]), ("b", [2.0, 0.0])], ["x", "y"], [1, 2], unit="minutes")
    first, second, third, _ = ElementTree.fromstring(chart).iter("rect")
    assert float(first.attrib["x"]) + float(first.attrib["width"]) == float(second.attrib["x"])
    assert abs(float(second.attrib["width"]) - 3 * float(first.attrib["width"])) < 0.3
    assert abs(float(third.attrib["width"]) - 2 * float(first.attrib["width"])) < 0.3


def test_a_long_name_keeps_the_end_that_tells_it_from_others() -> None:
    chart = part_chart([("a_very_long_name_of_a_run_that_ends_in_seed1", [1.0])], ["x"], [1], unit="minutes")
    (name,) = [text.text for text in ElementTree.fromstring(chart).iter("text") if text.attrib["class"] == "name"]
    assert name is not None and name.startswith("…") and name.endswith("ends_in_seed1")
