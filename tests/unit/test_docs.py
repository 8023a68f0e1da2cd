"""What the Markdown files tell a reader to do, read from them: commands, Python examples, links."""

import argparse
import importlib
import re
import runpy
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from recipes import rung_reference, settings_reference
from tests.composed import composed_dataclass

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PYTHON = {".venv/bin/python", "python", "python3.11", "launch/nemo_run/.venv/bin/python"}
# Not ours; what they do is not for us to check.
FOREIGN = {
    "apt-get",
    "cat",
    "curl",
    "export",
    "git",
    "kill",
    "pip",
    ".venv/bin/hf",
    ".venv/bin/pre-commit",
    ".venv/bin/tensorboard",
    "launch/nemo_run/.venv/bin/pip",
}
# Commands for a cluster are composed by tests/unit/config/test_ladder.py.
CLUSTER = {"sbatch", "scancel", "squeue"}
# They take Hydra overrides but have no configuration of their own name.
BASED_ON = {"plan": "grpo", "doctor": "grpo", "simulate_cluster": "grpo"}


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str


def blocks() -> Iterator[Block]:
    for page in PAGES:
        lines = page.read_text().splitlines()
        opened: tuple[int, str] | None = None
        for number, line in enumerate(lines, 1):
            if match := re.match(r"\s*```(\w*)", line):
                if opened is None:
                    opened = (number, match[1])
                    continue
                start, language = opened
                name = page.relative_to(ROOT).as_posix()
                yield Block(page=name, line=start, language=language, text="\n".join(lines[start : number - 1]))
                opened = None
        assert opened is None, f"{page.name}: the block of line {opened} is not closed"


BLOCKS = list(blocks())


def commands() -> dict[str, list[str]]:
    """Return every command line once, as words, by page and text. Heredocs are left to the Python examples."""
    found: dict[str, list[str]] = {}
    for block in BLOCKS:
        if block.language not in ("bash", "sh"):
            continue
        text = re.sub(r"<<'?(\w+)'?\n.*?\n\1(?=\n|$)", "", block.text, flags=re.DOTALL)
        # A reader puts something of their own for <this>.
        text = re.sub(r"=<[^<>\n]+>", "=VALUE", re.sub(r"\\\n\s*", " ", text))
        for line in text.splitlines():
            # A line that begins with a brace is what a command answered.
            words = [] if line.lstrip().startswith("{") else shlex.split(line, comments=True)
            if words and line not in {key.partition(": ")[2] for key in found}:
                found[f"{block.page}: {line.strip()}"] = words
    return found


COMMANDS = commands()


def without_environment(words: list[str]) -> list[str]:
    return words[next((i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)), len(words)) :]


def python_sources() -> dict[str, list[str]]:
    """Return the Python examples by page, in their order: later ones may use what earlier ones have made."""
    found: dict[str, list[str]] = {}
    for block in BLOCKS:
        if block.language == "python":
            found.setdefault(block.page, []).append(block.text)
        for match in re.finditer(r"python - <<'?(\w+)'?\n(.*?)\n\1(?=\n|$)", block.text, flags=re.DOTALL):
            found.setdefault(block.page, []).append(match[2])
    return found


def composes(recipe: str, words: list[str]) -> None:
    if "--config-name" in words:
        recipe = words[words.index("--config-name") + 1]
    overrides = [word for word in words if re.match(r"[+~\w@./]+=", word)]
    options = [word for word in words if word.startswith("-")]
    assert set(options) <= {"--config-name", "--cfg", "--help"}, options
    # Misspelt keys are refused by the schemas, impossible values by the dataclasses.
    composed_dataclass(recipe, *overrides)


class Parsed(Exception):  # noqa: N818  (how a test gets out of a command that has understood its options)
    """The options were understood."""


def parses(recipe: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> None:
        real(self, args, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    with pytest.raises(Parsed):
        importlib.import_module(f"recipes.{recipe}").main(words)


def test_commands_examples_and_pages_are_found() -> None:
    assert len(COMMANDS) > 80 and len(python_sources()) >= 5 and len(PAGES) > 20


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_one_that_works(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZS_NEMO_MODELS", "models")
    program, *words = without_environment(COMMANDS[line]) or ["export"]
    if program in FOREIGN | CLUSTER:
        return
    if program in PYTHON and words[0] in ("-", "-m"):
        assert words[0] == "-" or words[1] in ("pip", "pytest", "ruff", "mypy", "venv")
        return
    script = ROOT / (words.pop(0) if program in PYTHON else program)
    assert script.is_file(), f"{script} does not exist"
    if script.suffix in (".sh", ".sbatch") and script.name not in ("quickstart.sh", "doctor.sh"):
        return
    recipe = {"quickstart.sh": "grpo", "doctor.sh": "doctor"}.get(script.name, script.stem)
    # The last one's options are read with NeMo-Run, which has an environment of its own.
    if script.parent.name in ("benchmark", "bin", "nemo_run"):
        return
    if (ROOT / "configs" / f"{recipe}.yaml").exists() or recipe in BASED_ON:
        composes(BASED_ON.get(recipe, recipe), words)
    elif "def main(arguments" in script.read_text():
        parses(recipe, words, monkeypatch)
    else:
        assert not words, f"{script.name} takes no arguments"


@pytest.mark.parametrize("page", python_sources())
def test_every_python_example_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "example.py"
    file.write_text("\n\n".join(python_sources()[page]))
    monkeypatch.chdir(tmp_path)
    # Under another name than __main__: servers are defined, not started.
    runpy.run_path(str(file), run_name="example")


@pytest.mark.parametrize("script", sorted({path.name for path in (ROOT / "launch").glob("*.sh")} - {"environment.sh"}))
def test_every_launch_script_tells_what_it_does(script: str) -> None:
    shown = subprocess.run([str(ROOT / "launch" / script), "--help"], capture_output=True, text=True, timeout=5)
    assert shown.returncode == 0 and shown.stdout.startswith("usage: launch/"), shown.stderr


def anchors(page: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    heads = re.findall(r"^#+ +(.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{target} does not exist"
        if found.suffix == ".md":
            assert not anchor or anchor in anchors(found), f"{target} has no such heading"
        if page.is_relative_to(ROOT / "docs"):
            assert found.is_relative_to(ROOT / "docs"), f"{target} leads out of the site; name the file instead"


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    named = re.findall(r"^\s+- [^:\n]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    assert sorted(named) == sorted(path.relative_to(ROOT / "docs").as_posix() for path in PAGES[2:])


def test_the_reference_of_settings_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert settings_reference.main(["--check"]) == 0, capsys.readouterr().err


def test_the_reference_says_name_type_default_and_meaning_of_a_setting() -> None:
    rows = settings_reference.PAGE.read_text().splitlines()
    assert "| `trainer.max_steps` | integer | `12` | Reinforcement-learning steps; also m of the curriculum. |" in rows
    choice = next(row for row in rows if row.startswith("| `generation.refit_transport` |"))
    assert "one of | `shared_memory` |" in choice and "`nccl`: A broadcast from the first training rank" in choice
    assert any(row.startswith("| `search.url` | text |") for row in rows)
    assert any(row.startswith("| `server.port` | integer |") for row in rows)
    assert any(row.startswith("| `critic.optim.lr` | number | `1e-05` |") for row in rows), "the critic's, not Adam's"


def test_the_page_of_the_7b_rung_has_what_planner_and_simulation_say() -> None:
    from zs_nemo.cluster.simulation.planned_cluster import PlannedCluster
    from zs_nemo.cluster.simulation.result_page import table

    page, cfg = rung_reference.PAGE.read_text(), rung_reference.configuration()
    assert f"```text\n{rung_reference.planned(cfg).rstrip()}\n```" in page
    cluster = PlannedCluster(cfg)
    row = table({"configured": [cluster.as_configured()]}).splitlines()[-1].split()
    assert row in [line.split() for line in page.splitlines()]
    for number in cluster.sources.quantities.values():
        assert f"| {number.name} | {number.value:.4g} | {number.unit} | {number.source.value}: {number.told} |" in page


@pytest.mark.long
def test_the_page_of_the_7b_rung_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert rung_reference.main(["--check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("mark", "pattern", "by"),
    [
        ("runs", "[gpr]*_seed*", ()),
        ("algorithms", "algorithms_*", ()),
        ("simulators", "simulators_*", ("search.template", "search.off_target")),
        ("curricula", "curricula_*", ("curriculum.name", "curriculum.constant_noise")),
        ("simulator_quality", "simulator_quality", ()),
        ("question_sets", "sets_*", ()),
    ],
)
def test_the_tables_of_results_are_those_of_the_kept_reports(
    tmp_path: Path, mark: str, pattern: str, by: tuple[str, ...]
) -> None:
    from recipes.report import main

    page, kept = ROOT / "docs" / "results.md", sorted((ROOT / "docs" / "results").glob(pattern))
    copy = tmp_path / "results.md"
    copy.write_text(page.read_text())
    columns = ["--by", *by] if by else []
    assert kept and main([*map(str, kept), "--table", *columns, "--into", str(copy), mark]) == 0
    assert copy.read_text() == page.read_text()


def test_the_published_comparison_of_the_docs_can_be_made_again(tmp_path: Path) -> None:
    from recipes.report import main

    assert main(["--side-by-side", str(tmp_path), *map(str, sorted((ROOT / "docs" / "results").glob("*_seed*")))]) == 0
    assert (tmp_path / "tables" / "results.tex").is_file()
