"""What is submitted through NeMo-Run is what launch/slurm/recipe.sbatch runs. NeMo-Run itself is not installed here."""

import importlib.util
import re
import shlex
import signal
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from tests.unit.test_slurm_scripts import Machine, wait_until

ROOT = Path(__file__).parents[2]
TYPED = ["experiment=zerosearch_grpo_7b", "evaluation.temperatures=[0.0, 1.0]", "exp_manager.name='a b'"]


@pytest.fixture(scope="module")
def submit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("submit", ROOT / "launch" / "nemo_run" / "submit.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_step_is_the_one_of_the_sbatch_with_the_overrides_as_typed(submit: ModuleType) -> None:
    script = submit.node_script("grpo", TYPED)
    # NeMo-Run joins the words with blanks and leaves them to the shell.
    words = shlex.split(" ".join(["bash", script["path"], *script["args"]]))
    sbatch = (ROOT / "launch" / "slurm" / "recipe.sbatch").read_text()
    (step,) = re.findall(r'^"\$\{step\[@\]\}" (.*) \|\| true$', sbatch, re.M)
    command = f'root={shlex.quote(str(ROOT))}; set -- grpo {shlex.join(TYPED)}; printf "%s\\n" {step}'
    shown = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert words == shown.stdout.splitlines()


def test_slurm_is_asked_for_what_the_sbatch_asks_for(submit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZS_NEMO_CONTAINER", "image.sqsh")
    monkeypatch.setenv("ZS_NEMO_MOUNTS", "/models:/models")
    fields = submit.slurm_fields(submit.parse(["--nodes", "2", "--gpus-per-node", "8", "grpo"]))
    sbatch = (ROOT / "launch" / "slurm" / "recipe.sbatch").read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", sbatch, re.M))
    assert asked["signal"] == fields["signal"] and asked["mem"] == fields["mem"]
    assert asked["ntasks-per-node"] == str(fields["ntasks_per_node"])
    assert asked["exclusive"] == "" and fields["exclusive"] is True
    assert (fields["nodes"], fields["gpus_per_node"], fields["account"]) == (2, 8, None)
    assert fields["container_mounts"] == [f"{ROOT}:{ROOT}", "/models:/models"]
    assert set(fields["srun_args"]) <= set(re.findall(r"--[\w-]+=\w+", sbatch))


def test_its_batch_script_prepares_and_ends_as_the_sbatch_and_shows_no_secret(submit: ModuleType) -> None:
    lines = submit.slurm_fields(submit.parse(["grpo"]))["setup_lines"].splitlines()
    sbatch = (ROOT / "launch" / "slurm" / "recipe.sbatch").read_text()
    for part in ("job.sh", "end.sh"):
        source = f'. "$root/launch/slurm/{part}"'
        assert source in sbatch.splitlines() and any(source in line for line in lines)
    assert lines.index("{ set +x; } 2>/dev/null") < lines.index('. "$root/launch/slurm/job.sh"')


def test_on_this_machine_the_recipe_itself_is_run(submit: ModuleType) -> None:
    script = submit.local_script("ppo", ["seed=2"])
    assert script["path"] == str(ROOT / "recipes" / "ppo.py") and script["args"] == ["seed=2"]


def test_an_unknown_recipe_is_refused_with_those_there_are(
    submit: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        submit.parse(["grop", "seed=1"])
    assert "there is no recipe 'grop'; choose one of" in capsys.readouterr().err


@pytest.mark.parametrize(("cancelled", "code", "requeues"), [(False, 75, 1), (True, 143, 0)])
def test_a_job_that_is_cancelled_is_not_requeued_and_one_that_was_asked_to_stop_is(
    submit: ModuleType, tmp_path: Path, cancelled: bool, code: int, requeues: int
) -> None:
    machine = Machine(tmp_path)
    began, script = tmp_path / "began", tmp_path / "job.sh"
    step = f"touch {began}; sleep 0.5" + ("" if cancelled else '; echo 75 >"$ZS_NEMO_OUTCOME"')
    script.write_text(f"set -e\n{submit.SETUP.format(root=shlex.quote(str(machine.root)))}\n{step}\n")
    # SLURM starts no step for a job that it ends.
    environment = machine.environment | {"NODES_CODE": "1" if cancelled else "0"}
    job = subprocess.Popen(["bash", script], env=environment, stderr=subprocess.DEVNULL)
    wait_until(began.exists)
    if cancelled:
        job.send_signal(signal.SIGTERM)
    assert (job.wait(30), len(machine.asked("scontrol requeue"))) == (code, requeues)
