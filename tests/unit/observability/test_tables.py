import csv
import io

from zs_nemo.observability.charts import Interval
from zs_nemo.observability.tables import Column, Table, count, score


def table() -> Table:
    return Table(
        name="scores",
        caption="100 % of it_all",
        columns=[
            Column(key="run", label="run & seed"),
            Column(key="n", label="n", form=count),
            Column(key="f1", label="F1", form=score),
        ],
        rows=[
            ["[a]_1", 1234, Interval(value=0.123456789, low=0.1, high=0.2)],
            ["mean", None, 0.5],
        ],
    )


def test_csv_has_numbers_in_full_and_three_columns_for_an_interval() -> None:
    rows = list(csv.DictReader(io.StringIO(table().csv())))
    assert rows[0] == {"run": "[a]_1", "n": "1234", "f1": "0.123456789", "f1_low": "0.1", "f1_high": "0.2"}
    assert rows[1] == {"run": "mean", "n": "", "f1": "0.5", "f1_low": "", "f1_high": ""}


def test_people_read_rounded_numbers_and_a_dash_for_what_was_not_measured() -> None:
    assert table().texts() == [["[a]_1", "1,234", "0.123 [0.100, 0.200]"], ["mean", "–", "0.500"]]


def test_markdown_has_its_numbers_to_the_right() -> None:
    assert table().markdown() == (
        "| run & seed | n | F1 |\n| --- | ---: | ---: |\n"
        "| [a]_1 | 1,234 | 0.123 [0.100, 0.200] |\n| mean | – | 0.500 |\n"
    )


def test_latex_is_a_booktabs_table_in_which_every_special_character_is_escaped() -> None:
    text = table().latex()
    assert r"\begin{tabular}{lrr}" in text and text.count(r"\\") == 3
    assert all(rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\label{tab:scores}"))
    assert r"\caption{100 \% of it\_all}" in text and r"run \& seed & n & F1 \\" in text
    # The bracket of a name must not become the argument of the line break before it.
    assert r"{}[a]\_1 & 1,234 & 0.123 [0.100, 0.200] \\" in text and "mean & -- & 0.500" in text


def test_latex_names_its_own_commands_literally() -> None:
    odd = Table(name="t", caption="", columns=[Column(key="x", label="x")], rows=[["\\~^{}<>"]])
    expected = r"\textbackslash{}\textasciitilde{}\textasciicircum{}\{\}\textless{}\textgreater{}"
    assert expected in odd.latex()
