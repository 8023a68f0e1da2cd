"""What the scripts of launch/slurm hand on, and what they make of a recipe's end; SLURM and Ray are stand-ins here."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "launch" / "slurm").iterdir())
SRUN = """#!/usr/bin/env bash
echo "srun $*" >>"$CALLS"
while [[ $1 == --* ]]; do shift; done
# As --export says of what is handed on.
if [[ ${SLURM_EXPORT_ENV:-ALL} != ALL ]]; then unset ZS_NEMO_RAY_ADDRESS ZS_NEMO_OUTCOME; fi
if [[ $2 == */sweep.sh ]]; then exit "${NODES_CODE:-0}"; fi
SLURM_NODEID=${NODE:-0} SLURM_CPUS_ON_NODE=16 exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then printf 'first\\nsecond\\n'; exit; fi
echo "scontrol $*" >>"$CALLS"
exit "${SCONTROL_CODE:-0}"
"""
GETENT = '#!/usr/bin/env bash\nprintf \'127.0.1.1 STREAM %s\\n10.1.2.3 STREAM %s\\n\' "$2" "$2"\n'
RAY = """#!/usr/bin/env bash
echo "ray $*" >>"$CALLS"
echo "secret $RAY_AUTH_MODE $RAY_AUTH_TOKEN" >>"$CALLS"
[[ -z ${RAY_FAILS:-} ]] || exit 0
if [[ -n ${RAY_ENDS:-} ]]; then
    # Beside it the recipe runs on the first node, and has come to its end where it has a code.
    echo 1 >"$ZS_NEMO_OUTCOME.pid"
    until [[ -e $CALLS.daemon ]]; do sleep 0.1; done
    if [[ $RAY_ENDS != without ]]; then echo "$RAY_ENDS" >"$ZS_NEMO_OUTCOME" && sleep 2; fi
    exit 0
fi
while [[ $1 != -- ]]; do shift; done
shift
# It stays, as Ray does.
code=0
"$@" || code=$?
exit "$code"
"""
PYTHON = """#!/usr/bin/env bash
printf '<%s>' "$@" >>"$CALLS"
echo >>"$CALLS"
for name in PYTHONPATH RAY_ADDRESS SLURM_EXPORT_ENV TRITON_CACHE_DIR VLLM_CACHE_ROOT; do
    echo "$name=${!name-unset}" >>"$CALLS"
done
if [[ -n ${LISTENS_TO:-} ]]; then exec "$REAL_PYTHON" -ISc "$LISTENER" $LISTENS_TO; fi
exit "${RECIPE_CODE:-0}"
"""
LISTENER = """
import os, signal, sys, time
calls = os.open(os.environ["CALLS"], os.O_WRONLY | os.O_APPEND)
def heard(number, frame):
    os.write(calls, f"heard {signal.Signals(number).name}\\n".encode())
    sys.exit(75)
time.sleep(float(os.environ.get("LISTENS_AFTER_S", "0")))
for name in sys.argv[1:]:
    signal.signal(signal.Signals[name], heard)
os.write(calls, b"listening\\n")
time.sleep(60)
sys.exit("no signal came")
"""
SBATCH = """#!/usr/bin/env bash
echo "sbatch $*" >>"$CALLS"
echo "$(($(grep -c . "$CALLS") + 40));north"
"""


class Machine:
    """A project folder and a PATH on which SLURM's commands are stand-ins that write down what they are asked."""

    def __init__(self, folder: Path) -> None:
        self.root, self.calls = folder / "a project", folder / "calls"
        shutil.copytree(ROOT / "launch", self.root / "launch")
        (self.root / "recipes").mkdir()
        for recipe in ("grpo", "ppo", "evaluate", "sft_simulator"):
            (self.root / "recipes" / f"{recipe}.py").touch()
        commands = {"srun": SRUN, "scontrol": SCONTROL, "getent": GETENT, "sbatch": SBATCH}
        for name, text in commands.items():
            self._install(folder / "bin" / name, text)
        for name, text in {"ray": RAY, "python": PYTHON}.items():
            self._install(self.root / ".venv" / "bin" / name, text)
        self.environment = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "CALLS": str(self.calls),
            "REAL_PYTHON": sys.executable,
            "LISTENER": LISTENER,
            # Of these the folders under /tmp are named.
            "SLURM_JOB_ID": f"9{os.getpid()}",
            "SLURM_JOB_NODELIST": "first,second",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_SUBMIT_DIR": str(self.root),
        }

    def _install(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def start(self, script: str, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
        # SLURM runs a copy of the script from elsewhere.
        copy = self.root.parent / "slurm_script"
        shutil.copy(ROOT / "launch" / "slurm" / script, copy)
        environment = {name: value for name, value in (self.environment | variables).items() if value}
        command = ["bash", str(copy), *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.root, env=environment, stdout=pipe, stderr=pipe, text=True)

    def end_of(self, job: "subprocess.Popen[str]") -> subprocess.CompletedProcess[str]:
        output, errors = job.communicate(timeout=60)
        for node in range(2):
            shutil.rmtree(Path(f"/tmp/zsn-{self.environment['SLURM_JOB_ID']}-{node}"), ignore_errors=True)
        return subprocess.CompletedProcess(job.args, job.returncode, output, errors)

    def run(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.end_of(self.start(script, *arguments, **variables))

    def asked(self, command: str) -> list[str]:
        if not self.calls.exists():
            return []
        return [line for line in self.calls.read_text().splitlines() if line.startswith(command)]


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_short_and_stops_at_the_first_error(script: Path) -> None:
    lines = script.read_text().splitlines()
    assert len(lines) <= 60 and "set -euo pipefail" in lines and os.access(script, os.X_OK)


@pytest.mark.parametrize("name", ["recipe.sbatch", "train_policy.sbatch", "sft_simulator.sbatch", "evaluate.sbatch"])
def test_jobs_requeue_and_are_told_before_their_limit(name: str) -> None:
    lines = (ROOT / "launch" / "slurm" / name).read_text().splitlines()
    assert "#SBATCH --requeue" in lines and "#SBATCH --open-mode=append" in lines
    assert any(line.startswith("#SBATCH --signal=USR1@") for line in lines)


def test_overrides_reach_the_recipe_as_typed_and_it_joins_the_job_s_own_ray(machine: Machine) -> None:
    typed = ["trainer.max_steps=3", "evaluation.temperatures=[0.0, 1.0]", "exp_manager.name='a b'"]
    assert machine.run("recipe.sbatch", "grpo", *typed).returncode == 0
    (command,) = machine.asked("<")
    port = 20000 + int(machine.environment["SLURM_JOB_ID"]) % 10000
    settings = [f"cluster.ray_address=10.1.2.3:{port}", *typed]
    assert command == "".join(f"<{word}>" for word in ["recipes/grpo.py", *settings])
    (ray,) = machine.asked("ray")
    assert ray.startswith(f"ray symmetric-run --address 10.1.2.3:{port} --min-nodes 2 --num-cpus 16 ")


def test_options_that_ray_takes_on_its_first_node_alone_are_not_given_to_the_others(machine: Machine) -> None:
    for node, given in (("0", True), ("1", False)):
        machine.run("recipe.sbatch", "grpo", NODE=node, ZS_NEMO_RAY_OPTIONS="--object-store-memory 1000000000")
        command = machine.asked("ray")[-1]
        assert ("--include-dashboard" in command) is given and "--object-store-memory 1000000000" in command
        assert f"--temp-dir /tmp/zsn-{machine.environment['SLURM_JOB_ID']}-{node}/ray " in command


@pytest.mark.parametrize(("code", "requeues"), [("0", False), ("1", False), ("2", False), ("75", True), ("130", False)])
def test_a_job_is_requeued_when_its_recipe_was_asked_to_stop_and_ends_with_its_code(
    machine: Machine, code: str, requeues: bool
) -> None:
    assert machine.run("recipe.sbatch", "grpo", RECIPE_CODE=code).returncode == int(code)
    job = machine.environment["SLURM_JOB_ID"]
    assert machine.asked("scontrol") == ([f"scontrol requeue {job}"] if requeues else [])
    assert list((machine.root / "runs" / "slurm").iterdir()) == []


@pytest.mark.parametrize(("code", "requeues"), [("0", False), ("1", True)])
def test_a_job_that_failed_is_requeued_when_one_of_its_nodes_gives_no_answer(
    machine: Machine, code: str, requeues: bool
) -> None:
    ended = machine.run("recipe.sbatch", "grpo", RECIPE_CODE=code, NODES_CODE="1")
    assert ended.returncode == (75 if requeues else 0)
    assert bool(machine.asked("scontrol")) is requeues


@pytest.mark.parametrize(
    ("ends", "has_daemon", "code", "requeues"),
    [
        ("without", False, 75, True),
        ("2", False, 75, True),
        # A recipe that has failed of something else.
        ("2", True, 2, False),
        ("0", False, 0, False),
    ],
)
def test_a_job_is_requeued_when_ray_ended_on_one_of_its_nodes_before_the_recipe(
    machine: Machine, ends: str, has_daemon: bool, code: int, requeues: bool
) -> None:
    folder = f"/tmp/zsn-{machine.environment['SLURM_JOB_ID']}-1"
    daemon = machine.root / "raylet"
    daemon.symlink_to("/bin/sleep")
    job = machine.start("recipe.sbatch", "grpo", NODE="1", RAY_ENDS=ends)
    # Not sooner: what an earlier life of the job has left is swept away at first.
    wait_until(lambda: machine.asked("ray"))
    process = subprocess.Popen([daemon, "60"], env={"RAY_TMPDIR": folder if has_daemon else "elsewhere"})
    machine.calls.with_suffix(".daemon").touch()
    try:
        ended = machine.end_of(job)
    finally:
        process.kill()
        process.wait()
    assert ended.returncode == code and bool(machine.asked("scontrol requeue")) is requeues, ended.stderr
    assert ("Ray ended while the recipe ran, on " in ended.stderr) is requeues
    assert list((machine.root / "runs" / "slurm").iterdir()) == []


def test_a_ray_that_did_not_start_on_one_of_the_nodes_requeues_nothing(machine: Machine) -> None:
    assert machine.run("recipe.sbatch", "grpo", NODE="1", RAY_FAILS="1").returncode == 1
    assert machine.asked("scontrol") == []


@pytest.mark.parametrize("nodes", ["1", "2"])
def test_a_recipe_finds_the_project_and_a_place_for_its_kernels_and_no_ray_of_somebody_else(
    machine: Machine, nodes: str
) -> None:
    given = {"PYTHONPATH": "given", "RAY_ADDRESS": "10.9.9.9:6379", "VLLM_CACHE_ROOT": "given"}
    assert machine.run("recipe.sbatch", "grpo", SLURM_JOB_NUM_NODES=nodes, **given).returncode == 0
    assert machine.asked("PYTHONPATH") == [f"PYTHONPATH={machine.root}:given"]
    assert machine.asked("RAY_ADDRESS") == ["RAY_ADDRESS=unset"]
    assert machine.asked("VLLM_CACHE_ROOT") == ["VLLM_CACHE_ROOT=given"]
    assert machine.asked("TRITON_CACHE_DIR") == [f"TRITON_CACHE_DIR=/tmp/zs_nemo-kernels-{os.getuid()}/triton"]


def test_a_job_that_was_submitted_without_an_environment_hands_its_own_on(machine: Machine) -> None:
    assert machine.run("recipe.sbatch", "grpo", SLURM_EXPORT_ENV="NONE").returncode == 0
    assert machine.asked("<recipes/grpo.py>")


def test_ray_asks_for_a_secret_that_is_the_job_s_own_and_stands_on_no_command_line(machine: Machine) -> None:
    machine.run("recipe.sbatch", "grpo")
    machine.run("recipe.sbatch", "grpo")
    first, second = (line.split() for line in machine.asked("secret"))
    assert first[1] == "token" and len(first[2]) == 64 and first[2] != second[2]
    assert not [line for line in machine.asked("ray") + machine.asked("srun") if first[2] in line]


def test_on_one_node_the_recipe_has_a_ray_of_its_own_that_leaves_others_alone(machine: Machine) -> None:
    assert machine.run("recipe.sbatch", "grpo", "seed=2", SLURM_JOB_NUM_NODES="1", RECIPE_CODE="75").returncode == 75
    assert machine.asked("<") == ["<recipes/grpo.py><seed=2>"] and machine.asked("ray") == []
    assert machine.asked("scontrol")


def signal_step(job: "subprocess.Popen[str]", number: signal.Signals, *, children_too: bool) -> None:
    """Do what SLURM does, with or without SignalChildrenProcesses."""
    (task,) = (each for each in psutil.Process(job.pid).children() if any("node.sh" in word for word in each.cmdline()))
    for process in [task, *(task.children(recursive=True) if children_too else ())]:
        process.send_signal(number)


@pytest.mark.parametrize("nodes", ["1", "2"])
@pytest.mark.parametrize(
    ("number", "children_too", "listens_to", "heard"),
    [
        (signal.SIGUSR1, False, "SIGUSR1 SIGTERM", "SIGUSR1"),
        (signal.SIGUSR1, True, "SIGUSR1 SIGTERM", "SIGUSR1"),
        (signal.SIGTERM, False, "SIGUSR1 SIGTERM", "SIGUSR1"),
        (signal.SIGTERM, False, "SIGTERM", "SIGTERM"),
    ],
)
def test_the_recipe_hears_a_signal_to_the_task_alone_as_well_as_one_to_every_process_and_the_job_is_requeued(
    machine: Machine, nodes: str, number: signal.Signals, children_too: bool, listens_to: str, heard: str
) -> None:
    job = machine.start("recipe.sbatch", "grpo", SLURM_JOB_NUM_NODES=nodes, LISTENS_TO=listens_to)
    wait_until(lambda: machine.asked("listening"))
    signal_step(job, number, children_too=children_too)
    ended = machine.end_of(job)
    assert ended.returncode == 75 and machine.asked("scontrol requeue"), ended.stderr
    assert machine.asked("heard")[0] == f"heard {heard}"


def test_a_signal_that_comes_before_the_recipe_listens_is_kept_for_it(machine: Machine) -> None:
    job = machine.start("recipe.sbatch", "grpo", SLURM_JOB_NUM_NODES="1", LISTENS_TO="SIGUSR1", LISTENS_AFTER_S="0.3")
    wait_until(lambda: machine.asked("<recipes/grpo.py>"))
    signal_step(job, signal.SIGUSR1, children_too=True)
    assert machine.end_of(job).returncode == 75 and machine.asked("heard") == ["heard SIGUSR1"]


def test_the_other_nodes_leave_the_end_to_the_first_one(machine: Machine) -> None:
    job = machine.start("recipe.sbatch", "grpo", NODE="1", LISTENS_TO="SIGUSR1 SIGTERM")
    wait_until(lambda: machine.asked("listening"))
    signal_step(job, signal.SIGUSR1, children_too=False)
    signal_step(job, signal.SIGTERM, children_too=False)
    (recipe,) = (each for each in psutil.Process(job.pid).children(recursive=True) if LISTENER in each.cmdline())
    assert machine.asked("heard") == []
    recipe.send_signal(signal.SIGUSR1)
    assert machine.end_of(job).returncode == 75 and machine.asked("heard") == ["heard SIGUSR1"]


def test_a_job_is_not_requeued_for_ever(machine: Machine) -> None:
    variables = {"RECIPE_CODE": "75", "SLURM_RESTART_COUNT": "3", "ZS_NEMO_MAX_REQUEUES": "3"}
    assert machine.run("recipe.sbatch", "grpo", **variables).returncode == 75
    assert machine.asked("scontrol") == []


def test_where_jobs_may_not_requeue_themselves_the_remedy_is_told(machine: Machine) -> None:
    ended = machine.run("recipe.sbatch", "grpo", RECIPE_CODE="75", SCONTROL_CODE="1")
    assert ended.returncode == 75 and "submit the same command again" in ended.stderr


def test_a_ray_that_does_not_start_is_no_success(machine: Machine) -> None:
    ended = machine.run("recipe.sbatch", "grpo", RAY_FAILS="1")
    assert ended.returncode == 1 and "the recipe did not come to its end" in ended.stderr


def test_an_exit_code_that_a_full_disk_did_not_take_is_no_success(machine: Machine) -> None:
    outcome = machine.root / "outcome"
    outcome.touch()
    variables = {"ZS_NEMO_OUTCOME": str(outcome), "root": str(machine.root)}
    ended = subprocess.run(
        ["bash", str(machine.root / "launch" / "slurm" / "end.sh")],
        env={**machine.environment, **variables},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.returncode == 1 and "its exit code could not be written to" in ended.stderr
    assert [line.split()[-1] for line in machine.asked("srun")] == ["keep"]


def test_a_container_gets_the_project_and_the_mounts_that_are_named(machine: Machine) -> None:
    machine.run("recipe.sbatch", "grpo", ZS_NEMO_CONTAINER="image.sqsh", ZS_NEMO_MOUNTS="/models:/models")
    assert (
        f"--container-image=image.sqsh --container-mounts={machine.root}:{machine.root},/models:/models"
        in (machine.asked("srun")[0])
    )


def test_a_setup_file_is_sourced_first_even_where_it_uses_unset_variables(machine: Machine) -> None:
    setup = machine.root / "modules.sh"
    setup.write_text('export PATH="$UNSET$PWD/.venv/bin:$PATH"\nfalse\necho "sourced" >>"$CALLS"\n')
    assert machine.run("recipe.sbatch", "grpo", ZS_NEMO_SETUP=str(setup)).returncode == 0
    assert machine.asked("sourced") and machine.asked("<recipes/grpo.py>")


def test_only_the_job_s_own_processes_are_swept_away_and_only_its_folder_when_asked(machine: Machine) -> None:
    own, other = (f"/tmp/zsn-{machine.environment['SLURM_JOB_ID']}{rest}" for rest in ("-0", "1-0"))
    sleepers = [subprocess.Popen(["sleep", "60"], env={"RAY_TMPDIR": folder}) for folder in (own, other)]
    Path(own).mkdir()
    try:
        environment = {**os.environ, **machine.environment, "SLURM_NODEID": "0"}
        for word, is_there in (("keep", True), ("delete", False)):
            subprocess.run([ROOT / "launch" / "slurm" / "sweep.sh", word], env=environment, check=True)
            assert Path(own).exists() is is_there
            assert (sleepers[0].wait(5), sleepers[1].poll()) == (-signal.SIGKILL, None)
    finally:
        for sleeper in sleepers:
            sleeper.kill()


def test_what_is_missing_is_named_with_the_remedy(machine: Machine) -> None:
    missing = machine.run("recipe.sbatch", "grop")
    assert missing.returncode == 2 and "recipes/grop.py is not there; call sbatch in the project" in missing.stderr
    for script, variable, remedy in (
        ("recipe.sbatch", "SLURM_JOB_ID", "start this script with sbatch"),
        ("train_policy.sbatch", "ZS_NEMO_MODELS", "set it to the folder that holds the models"),
        ("sft_simulator.sbatch", "ZS_NEMO_MODELS", "set it to the folder that holds the models"),
        ("sft_simulator.sbatch", "SLURM_JOB_NUM_NODES", "start this script with sbatch"),
        ("evaluate.sbatch", "SLURM_JOB_NUM_NODES", "start this script with sbatch"),
    ):
        ended = machine.run(script, "grpo", **{"ZS_NEMO_MODELS": "m", variable: ""})
        assert ended.returncode != 0 and f"{variable}: {remedy}" in ended.stderr
    nobody = machine.run("evaluate.sbatch", "search=bm25")
    assert nobody.returncode == 2 and "no policy is named; give policy.model=FOLDER" in nobody.stderr
    assert machine.asked("srun") == []


def test_training_takes_the_cluster_that_was_allocated_and_the_user_s_settings_last(machine: Machine) -> None:
    machine.run(
        "train_policy.sbatch", "trainer.max_steps=7", ZS_NEMO_MODELS="m", ALGORITHM="ppo", GPU="h100", SIZE="3b"
    )
    (command,) = machine.asked("<recipes/ppo.py>")
    assert "<experiment=zerosearch_ppo_3b><cluster=h100_2x8>" in command and command.endswith("<trainer.max_steps=7>")


@pytest.mark.parametrize(
    ("variables", "chosen", "name"),
    [
        ({"SLURM_JOB_NUM_NODES": "1"}, "a100_1x8", "zerosearch_sft_simulator_7b"),
        ({"SIZE": "14b", "GPU": "h100"}, "h100_2x8", "zerosearch_sft_simulator_14b"),
    ],
)
def test_a_simulator_is_tuned_by_the_experiment_of_its_size_and_requeued_when_asked_to_stop(
    machine: Machine, variables: dict[str, str], chosen: str, name: str
) -> None:
    typed = ["sft.examples=runs/some examples", "exp_manager.name=mine"]
    ended = machine.run("sft_simulator.sbatch", *typed, ZS_NEMO_MODELS="m", RECIPE_CODE="75", **variables)
    (command,) = machine.asked("<recipes/sft_simulator.py>")
    settings = [f"experiment={name}", f"cluster={chosen}", f"exp_manager.name={name}", *typed]
    assert command.endswith("".join(f"<{word}>" for word in settings))
    assert ended.returncode == 75 and machine.asked("scontrol requeue")


@pytest.mark.parametrize(
    ("typed", "nodes", "engines"),
    [
        (["policy.model=some/policy", "data.test=[nq:test, popqa:test]"], 1, 8),
        (["policy=qwen2_5_7b", "search=prompted_14b", "evaluate.limit=500"], 2, 8),
        (["policy=qwen2_5_7b", "search=simulated", "search.model=some/simulator"], 1, 4),
        (["policy=qwen2_5_7b", "search=prompted_14b", "search.endpoints=[http://host1:8000/v1]"], 1, 8),
        (["policy=qwen2_5_7b", "search=prompted_14b", "search.endpoints=[]"], 1, 4),
        (["endpoint.addresses=[http://host1:8000/v1]", "endpoint.served_model=x", "search=none"], 1, 8),
    ],
)
def test_an_evaluation_gives_the_gpus_of_its_nodes_to_engines(
    machine: Machine, typed: list[str], nodes: int, engines: int
) -> None:
    assert machine.run("evaluate.sbatch", *typed, SLURM_JOB_NUM_NODES=str(nodes), RECIPE_CODE="75").returncode == 75
    (command,) = machine.asked("<recipes/evaluate.py>")
    chosen = f"<experiment=zerosearch_evaluation><cluster=a100_{nodes}x8><generation.num_engines={engines}>"
    assert chosen in command and command.endswith("".join(f"<{word}>" for word in typed))
    # The other half of the GPUs is the simulator's.
    assert (f"<search.num_engines={engines}>" in command) is (engines < 8 * nodes)
    assert machine.asked("scontrol requeue")


@pytest.mark.parametrize(
    ("kind", "endpoints", "counts"),
    [
        ("bm25", "", "<generation.num_engines=8><rollout"),
        ("simulated", '"endpoints": [],', "<generation.num_engines=4><search.num_engines=4><rollout"),
        ("simulated", '"endpoints": ["http://host1:8000/v1"],', "<generation.num_engines=8><rollout"),
        (None, "", "<generation.num_engines=8><rollout"),
    ],
)
def test_an_evaluation_that_is_repeated_takes_its_limits_and_its_simulator_from_the_manifest(
    machine: Machine, kind: str | None, endpoints: str, counts: str
) -> None:
    if kind is not None:
        # In the form of FrozenRun.write; tests/unit/evaluation/test_frozen_run.py holds it to these lines.
        lines = ["{", f'  "search": "{kind}",', '  "settings": {', '    "search": {', f"      {endpoints}"]
        (machine.root / "a manifest.json").write_text("\n".join(lines))
    machine.run("evaluate.sbatch", "manifest=a manifest.json", SLURM_JOB_NUM_NODES="1", GPU="h100")
    (command,) = machine.asked("<recipes/evaluate.py>")
    assert command.startswith(f"<recipes/evaluate.py><cluster=h100_1x8>{counts}") and "experiment" not in command


@pytest.mark.parametrize("submitted", [True, False])
def test_the_doctor_looks_from_the_project_that_it_belongs_to_submitted_and_in_an_interactive_allocation(
    machine: Machine, submitted: bool
) -> None:
    script, elsewhere = machine.root / "launch" / "doctor.sh", machine.root.parent
    variables = {"SLURM_SUBMIT_DIR": str(elsewhere)}
    if submitted:
        script, variables = Path(shutil.copy(script, elsewhere / "slurm_script")), {}
    command = ["bash", str(script.relative_to(elsewhere)), "seed=2"]
    environment = machine.environment | variables
    ended = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert machine.asked("<") == ["<recipes/doctor.py><seed=2>"]
    assert machine.asked("PYTHONPATH") == [f"PYTHONPATH={machine.root}"]
    assert machine.asked("SLURM_EXPORT_ENV") == ["SLURM_EXPORT_ENV=ALL"]


def test_a_chain_begins_every_job_after_the_one_before_it(machine: Machine) -> None:
    ended = machine.run("chain.sh", "3", "--nodes=2", "launch/slurm/train_policy.sbatch", "seed=2")
    command = "--nodes=2 launch/slurm/train_policy.sbatch seed=2"
    assert machine.asked("sbatch") == [
        f"sbatch --parsable {command}",
        f"sbatch --parsable --dependency=afterany:41 {command}",
        f"sbatch --parsable --dependency=afterany:42 {command}",
    ]
    assert ended.stdout.splitlines()[-1] == "job 3 of 3: 43"
    assert machine.run("chain.sh", "none", "x").returncode == 2


def test_nobody_waits_for_a_recipe_whose_step_has_ended(machine: Machine) -> None:
    script = str(machine.root / "launch" / "slurm" / "ask_to_stop.sh")
    ended = subprocess.Popen(["true"])
    ended.wait()
    environment = machine.environment | {"ZS_NEMO_OUTCOME": str(machine.root / "outcome")}
    # With a parent that is alive: by that it is not to go.
    subprocess.run(["bash", script, "USR1", str(ended.pid)], env=environment, check=True, timeout=30)
