"""A GRPO step of the quickstart against one of TRL's GRPOTrainer on the same work, on the same two cores.

    .venv/bin/python -m pip install --no-deps --target .trl/site-packages -r requirements/bench.txt
    .venv/bin/python tests/benchmark/bench_step.py --output step.json
    .venv/bin/python tests/benchmark/bench_step.py --policy runs/quickstart/reference --questions 4 --steps 2

Ours is ``recipes/grpo.py`` with its own settings. TRL then starts from the same warm-started policy, and gets the same
questions in the same order, the same samples of each, limits, temperature, F1 reward, precision, loss (sequences
weigh alike, advantages by the group's mean, clipping, KL to the start), learning rates and AdamW. It asks the same
simulator through ``recipes/serve_search.py``. Its mask leaves the policy's tokens alone in the loss. One side runs at
a time, with all cores; nothing else should.

TRL is given the fastest that works on a CPU: two data-parallel processes of one thread (two threads of one process
wait for each other), micro-batches of a few rows, no gradient checkpointing, a ``rollout_func`` with all searches of a
turn under way at once, and a simulator with all cores meanwhile, since nothing else computes then. It trains once with
each kind of generation (``trl_step.py`` describes them), and ours is held against the fastest. The options beginning
with ``--trl-`` choose otherwise.

``ratio`` is ours over TRL's in trajectories a minute: those that were graded, over the seconds of their steps. Both
sides leave out those whose search failed; those without an advantage count on both sides, although ours spends no
update on them. Seconds are of rollout, reference and update, without what either writes between steps. ``--evaluate
N`` examines what both have learned on N held-out questions, with BM25.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from hydra import compose, initialize_config_dir  # noqa: E402

from zs_nemo.cluster.settled_config import settled  # noqa: E402
from zs_nemo.config.algorithm import KlPlace, LossAggregation, ZeroVariance  # noqa: E402
from zs_nemo.config.policy import Precision  # noqa: E402
from zs_nemo.config.recipe import GrpoRecipeConfig  # noqa: E402
from zs_nemo.config.registry import register, to_dataclass  # noqa: E402
from zs_nemo.config.search import SimulatedSearchConfig  # noqa: E402
from zs_nemo.curriculum import NoiseCurriculum  # noqa: E402
from zs_nemo.observability.phase import Phase  # noqa: E402
from zs_nemo.qa.facts import load_facts_world  # noqa: E402
from zs_nemo.qa.prompts import policy_prompt  # noqa: E402
from zs_nemo.qa.question_source import load_questions  # noqa: E402
from zs_nemo.rollout.build import episode_limits  # noqa: E402
from zs_nemo.rollout.collector import questions_of_step  # noqa: E402
from zs_nemo.training.schedule import learning_rate  # noqa: E402

OURS, TRL = "ours", "trl"
LOSS_TYPES = {LossAggregation.sequence: "grpo", LossAggregation.token: "dapo"}
ONLY_TRAINING = [
    "evaluation.num_questions=1",
    "evaluation.temperatures=[0.0]",
    "evaluation.num_simulator_questions=1",
    "exp_manager.save_every_n_steps=1000000",
]
"""The recipe examines the policy before and after; here that is done, if at all, for both sides alike."""
SERVED = "is served at "
START_TIMEOUT_S = 600.0
TEMPERATURES = (0.0, 1.0)
KINDS = ("transformers", "vllm", "continuous")


def settings_of(options: argparse.Namespace) -> tuple[list[str], GrpoRecipeConfig]:
    """Return what is set of ``recipes/grpo.py``, and the whole configuration that comes of it."""
    overrides = [f"trainer.max_steps={options.warm_up + options.steps}"]
    if options.questions:
        overrides.append(f"rollout.num_prompts_per_step={options.questions}")
    if options.policy:
        overrides += [f"policy.model={options.policy.resolve()}", "warm_start.steps=0"]
    overrides += options.overrides
    register()
    with initialize_config_dir(config_dir=str(ROOT / "configs"), version_base="1.3"):
        cfg = settled(to_dataclass(compose("grpo", overrides=overrides), GrpoRecipeConfig))
    check_comparable(cfg)
    return overrides, cfg


def check_comparable(cfg: GrpoRecipeConfig) -> None:
    """Refuse settings that TRL's trainer has no counterpart for."""
    episodes = cfg.rollout.num_prompts_per_step * cfg.rollout.num_generations_per_prompt
    if cfg.policy.global_batch_size < episodes:
        raise ValueError(
            f"policy.global_batch_size={cfg.policy.global_batch_size} makes several updates of a step's {episodes} "
            f"trajectories; the comparison is of steps with one, so set it to at least {episodes}"
        )
    if cfg.algorithm.loss_aggregation not in LOSS_TYPES:
        raise ValueError(
            f"algorithm.loss_aggregation={cfg.algorithm.loss_aggregation.name} divides by another number than TRL's "
            f"losses; set it to {' or '.join(each.name for each in LOSS_TYPES)}"
        )
    if cfg.algorithm.zero_variance is ZeroVariance.resample:
        raise ValueError(
            "algorithm.zero_variance=resample asks other questions than TRL's step; set it to drop or keep"
        )


def check_trl(folder: Path) -> None:
    """Refuse to begin without TRL: ours would run for nothing."""
    if not (folder / "trl").is_dir():
        raise ValueError(
            f"--trl {folder} holds no TRL; install it with\n"
            f"  {sys.executable} -m pip install --no-deps --target {folder} -r requirements/bench.txt"
        )


def run(command: Sequence[str | Path], log: Path, environment: dict[str, str] | None = None) -> float:
    """Run a command with its output in a file, and return its seconds; a failure raises with the end of the file."""
    began = time.perf_counter()
    with log.open("w") as file:
        done = subprocess.run(
            [*map(str, command)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        raise RuntimeError(f"{command[1]} failed with exit code {done.returncode}:\n{end_of(log)}")
    return time.perf_counter() - began


def end_of(log: Path) -> str:
    """Return the last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-30:])


def run_ours(overrides: Sequence[str], work: Path) -> dict[str, Any]:
    """Train with the recipe; return its steps, one row each, in the terms that both sides share."""
    place = [f"exp_manager.exp_dir={work}", f"exp_manager.name={OURS}"]
    wall_s = run([sys.executable, "recipes/grpo.py", *overrides, *ONLY_TRAINING, *place], work / f"{OURS}.log")
    rows = [json.loads(line) for line in (work / OURS / "metrics.jsonl").read_text().splitlines()]
    return {"wall_s": wall_s, "steps": [our_row(row) for row in rows if row["phase"] == Phase.rl.value]}


def our_row(row: dict[str, Any]) -> dict[str, Any]:
    """Translate a step's metrics."""
    stages = {name.removeprefix("time/"): value for name, value in row.items() if name.startswith("time/")}
    graded = row["rollout/episodes"]
    return {
        "step_s": sum(stages.values()),
        "rollout_s": stages.get("rollout", 0.0) + stages.get("refit", 0.0),
        "refit_s": stages.get("refit", 0.0),
        "reference_s": stages.get("reference", 0.0),
        "train_s": stages.get("train", 0.0) + stages.get("advantage", 0.0),
        "graded": graded,
        "reward": row["reward/mean"] * graded,
        "without_advantage_share": row["reward/zero_variance_share"],
        "turns": row["rollout/turns_per_episode"] * graded,
        "searches": row["rollout/searches_per_episode"] * graded,
        "policy_tokens": row["rollout/response_tokens"] * graded,
        "trained_tokens": row["tokens/trained"],
        # Sequences lie one after another in micro-batches: nothing is filled up.
        "padding_share": 0.0,
    }


def write_work(
    options: argparse.Namespace, cfg: GrpoRecipeConfig, folder: Path, policy: Path, url: str
) -> tuple[Path, int]:
    """Write down what TRL has to do; return the file and the rows of a micro-batch."""
    share = cfg.rollout.num_prompts_per_step * cfg.rollout.num_generations_per_prompt // options.trl_processes
    rows = next(size for size in range(min(options.trl_rows, share), 0, -1) if share % size == 0)
    optim, max_steps = cfg.policy.optim, cfg.trainer.max_steps
    content = {
        "model": str(policy),
        "url": url,
        "generation": folder.name.removeprefix(f"{TRL}_"),
        "threads": max(1, len(os.sched_getaffinity(0)) // options.trl_processes),
        "search_threads": share,
        "num_documents": cfg.search.num_documents,
        "limits": asdict(episode_limits(cfg)),
        "policy_to": str(folder / "policy"),
        "learning_rates": [
            learning_rate(optim.sched, lr=optim.lr, step=step, max_steps=max_steps) for step in range(max_steps)
        ],
        "adam": {"betas": optim.betas, "eps": optim.eps, "weight_decay": optim.weight_decay},
        "grpo": grpo_settings(cfg)
        | {"per_device_train_batch_size": rows, "gradient_accumulation_steps": share // rows},
        "steps": steps_of(cfg),
    }
    path = folder / "work.json"
    path.write_text(json.dumps(content))
    return path, rows


def grpo_settings(cfg: GrpoRecipeConfig) -> dict[str, Any]:
    """Return what our settings are in TRL's terms."""
    algorithm = cfg.algorithm
    return {
        "seed": cfg.seed,
        "max_steps": cfg.trainer.max_steps,
        "num_generations": cfg.rollout.num_generations_per_prompt,
        "max_completion_length": cfg.rollout.max_sequence_tokens,
        "max_grad_norm": cfg.policy.gradient_clip_val,
        "temperature": cfg.generation.temperature,
        "top_p": cfg.generation.top_p,
        "beta": algorithm.kl.coef if algorithm.kl.where is KlPlace.loss else 0.0,
        "epsilon": algorithm.clip_ratio_low,
        "epsilon_high": algorithm.clip_ratio_high,
        "entropy_coef": algorithm.entropy_coef,
        "loss_type": LOSS_TYPES[algorithm.loss_aggregation],
        "scale_rewards": "group" if algorithm.normalize_std else "none",
        "bf16": cfg.policy.precision is Precision.bf16,
    }


def steps_of(cfg: GrpoRecipeConfig) -> list[dict[str, Any]]:
    """Return the questions and the noise that our run has at each step."""
    train = load_questions(cfg.data, load_facts_world(cfg.data)).train
    curriculum = NoiseCurriculum.from_config(cfg.curriculum, max_steps=cfg.trainer.max_steps)
    is_simulated = isinstance(cfg.search, SimulatedSearchConfig)
    return [
        {
            "noise": curriculum.noise_at(step) if is_simulated else 0.0,
            "questions": [
                {"prompt": policy_prompt(each.text), "question": each.text, "answers": list(each.answers)}
                for each in questions_of_step(train, step, cfg.rollout.num_prompts_per_step, cfg.seed)
            ],
        }
        for step in range(cfg.trainer.max_steps)
    ]


@contextmanager
def search_server(options: argparse.Namespace, cfg: GrpoRecipeConfig, work: Path) -> Iterator[str]:
    """Serve the run's engine to other programs; yield its address."""
    chosen = [each for each in options.overrides if each.startswith(("search=", "search.", "data."))]
    if not any(each.startswith("search=") for each in chosen):
        chosen.append("search=simulated")
    log = work / "server.log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [
                sys.executable,
                "recipes/serve_search.py",
                *chosen,
                f"seed={cfg.seed}",
                "server.port=0",
                f"cluster.threads_per_process={options.trl_simulator_threads}",
                f"log_dir={work / 'server'}",
            ],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        yield address_of(server, log)
    finally:
        server.terminate()
        server.wait()


def address_of(server: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until the server is ready; return where."""
    give_up_at = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < give_up_at:
        line = next((each for each in log.read_text().splitlines() if SERVED in each), "")
        if line:
            return line.partition(SERVED)[2].partition(";")[0]
        if server.poll() is not None:
            break
        time.sleep(0.2)
    raise RuntimeError(f"the search server did not start:\n{end_of(log)}")


def run_trl(options: argparse.Namespace, cfg: GrpoRecipeConfig, folder: Path, policy: Path) -> dict[str, Any]:
    """Train with TRL and the kind of generation that the folder is named after; return its steps, one row each."""
    folder.mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(options.trl_processes)]
    with search_server(options, cfg, folder) as url:
        path, rows = write_work(options, cfg, folder, policy, url)
        wall_s = run(
            [sys.executable, *launcher, ROOT / "tests/benchmark/trl_step.py", path],
            folder / "output.log",
            {
                # Behind the project's packages: it holds what those lack, and nothing of theirs.
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(options.trl.resolve())]),
                "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // options.trl_processes)),
                "GLOO_SOCKET_IFNAME": "lo",
                "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false",
                "TORCHDYNAMO_DISABLE": "1",
                "TRL_EXPERIMENTAL_SILENCE": "1",
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                # Nothing is compiled, as in our engines; TRL has no setting for it.
                "VLLM_USE_AOT_COMPILE": "0",
            },
        )
    ranks = [
        [json.loads(line) for line in (folder / f"trl_{rank}.jsonl").read_text().splitlines()]
        for rank in range(options.trl_processes)
    ]
    return {"wall_s": wall_s, "micro_batch_rows": rows, "steps": [trl_row(each) for each in zip(*ranks, strict=True)]}


def trl_row(ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Bring a step's rows of all processes together: counts add up, and the first one's clock is every one's."""
    total = {name: sum(rank[name] for rank in ranks) for name in ranks[0] if not name.endswith("_s")}
    return {name: value for name, value in ranks[0].items() if name.endswith("_s")} | {
        "graded": total["rows"] - total["failed"],
        "reward": total["reward"],
        "without_advantage_share": 1 - total["with_advantage"] / total["rows"],
        "padding_share": 1 - total["tokens"] / total["computed_tokens"],
        **{name: total[name] for name in ("turns", "searches", "policy_tokens", "trained_tokens")},
        "trained_tokens_with_advantage": total["trained_tokens_with_advantage"],
    }


def summary(side: dict[str, Any], warm_up: int) -> dict[str, Any]:
    """Return the figures of the steps that count."""
    steps = side["steps"][warm_up:]
    seconds, graded = sum(each["step_s"] for each in steps), sum(each["graded"] for each in steps)
    means = {name: round(mean(each[name] for each in steps), 3) for name in steps[0] if name != "reward"}
    return means | {
        "trajectories_per_min": round(60 * graded / seconds, 2),
        "reward_by_step": [round(each["reward"] / each["graded"], 4) for each in side["steps"]],
        "wall_s": round(side["wall_s"], 1),
    }


def evaluate(options: argparse.Namespace, work: Path, policy: Path, name: str) -> dict[str, float]:
    """Return the F1 of a policy on held-out questions with BM25, by temperature."""
    found = {}
    for temperature in TEMPERATURES:
        run_name = f"{name}_at_{temperature:g}"
        run(
            [
                sys.executable,
                "recipes/evaluate.py",
                f"policy.model={policy}",
                f"evaluate.limit={options.evaluate}",
                f"evaluate.temperature={temperature}",
                f"exp_manager.exp_dir={work / 'evaluations'}",
                f"exp_manager.name={run_name}",
                *(each for each in options.overrides if each.startswith("data.")),
            ],
            work / f"{run_name}.log",
        )
        report = json.loads((work / "evaluations" / run_name / "report.json").read_text())
        (scores,) = report["evaluation"].values()
        found[f"{temperature:g}"] = scores["f1"]
    return found


def table(sides: dict[str, dict[str, Any]]) -> str:
    """Return the figures of both sides as lines of text."""
    rows = {
        "seconds a step": "step_s",
        "  rollout": "rollout_s",
        "    generation": "generation_s",
        "    search": "search_s",
        "  reference": "reference_s",
        "  update": "train_s",
        "trajectories a step": "graded",
        "turns": "turns",
        "searches": "searches",
        "tokens of the policy": "policy_tokens",
        "tokens trained": "trained_tokens",
        "share of padding": "padding_share",
        "share without advantage": "without_advantage_share",
        "trajectories a minute": "trajectories_per_min",
    }
    lines = [f"{'':26}{OURS:>12}{TRL:>12}"]
    for title, name in rows.items():
        cells = [f"{sides[side][name]:12.2f}" if name in sides[side] else f"{'':12}" for side in (OURS, TRL)]
        lines.append(f"{title:26}{''.join(cells)}")
    for step, pair in enumerate(zip(*(sides[side]["reward_by_step"] for side in (OURS, TRL)), strict=True)):
        lines.append(f"{f'mean F1, step {step}':26}" + "".join(f"{value:12.4f}" for value in pair))
    return "\n".join(lines)


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run both sides; return what is printed."""
    overrides, cfg = settings_of(options)
    load = os.getloadavg()[0]
    done = {OURS: run_ours(overrides, work)}
    policy = work / OURS / "reference"
    for kind in options.trl_generation:
        done[f"{TRL}_{kind}"] = run_trl(options, cfg, work / f"{TRL}_{kind}", policy)
    sides = {name: summary(side, options.warm_up) for name, side in done.items()}
    fastest = max((name for name in sides if name != OURS), key=lambda name: sides[name]["trajectories_per_min"])
    parts: dict[str, Any] = {
        OURS: sides[OURS],
        TRL: sides[fastest],
        "trl_by_generation": {name: side for name, side in sides.items() if name != OURS},
        "steps": {name: side["steps"] for name, side in done.items()},
    }
    if options.evaluate:
        folders = {"start": policy, OURS: work / OURS / "policy", TRL: work / fastest / "policy"}
        parts["f1"] = {name: evaluate(options, work, folder, name) for name, folder in folders.items()}
    return {
        "name": "step",
        "ratio": round(parts[OURS]["trajectories_per_min"] / parts[TRL]["trajectories_per_min"], 3),
        "parts": parts,
        "settings": overrides,
        "trl": {
            "processes": options.trl_processes,
            "micro_batch_rows": done[fastest]["micro_batch_rows"],
            "generation": fastest.removeprefix(f"{TRL}_"),
            "simulator_threads": options.trl_simulator_threads,
        },
        "precision": cfg.policy.precision.name,
        "machine": {
            "platform": platform.platform(),
            "cpus": len(os.sched_getaffinity(0)),
            "load_before": round(load, 2),
            "niceness": os.nice(0),
        },
        "versions": versions(options.trl),
        "runs": options.steps,
    }


def versions(trl: Path) -> dict[str, str]:
    """Return the versions of what was measured."""
    found = {each: metadata.version(each) for each in ("torch", "transformers", "megatron-core", "ray")}
    for each in metadata.distributions(path=[str(trl)]):
        if each.name in ("trl", "accelerate"):
            found[each.name] = each.version
    return found


def main() -> None:
    """Run both and print the table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, help="a warm-started folder; without it the recipe's own warm start")
    parser.add_argument("--questions", type=int, help="questions a step instead of the quickstart's")
    parser.add_argument("--steps", type=int, default=3, help="steps that count")
    parser.add_argument("--warm-up", type=int, default=1, help="steps before them that do not")
    parser.add_argument("--evaluate", type=int, default=0, metavar="N", help="held-out questions for F1 afterwards")
    parser.add_argument("--output", type=Path, help="a file for the JSON")
    parser.add_argument("--work", type=Path, help="an empty or new folder to keep everything in")
    parser.add_argument("--trl", type=Path, default=ROOT / ".trl/site-packages", help="the folder with TRL")
    parser.add_argument("--trl-processes", type=int, default=2)
    parser.add_argument("--trl-rows", type=int, default=6, help="most rows of TRL's micro-batch")
    parser.add_argument("--trl-generation", choices=KINDS, action="append", help="may be repeated; default: two kinds")
    parser.add_argument("--trl-simulator-threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("overrides", nargs="*", help="settings of recipes/grpo.py for both sides")
    options = parser.parse_args()
    options.trl_generation = options.trl_generation or list(KINDS[:2])
    try:
        check_trl(options.trl)
        if options.work and options.work.exists() and any(options.work.iterdir()):
            raise ValueError(f"--work {options.work} is not empty; name a new folder")
        with tempfile.TemporaryDirectory() as folder:
            work = (options.work or Path(folder)).resolve()
            work.mkdir(parents=True, exist_ok=True)
            result = measure(options, work)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result["parts"]))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
