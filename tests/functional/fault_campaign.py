"""Injects every fault many times over, counts what became of the runs, and writes the table of docs/cluster.md.

Not collected by pytest: ``launch/faults.sh`` is the command.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.functional.injected_faults import FAULTS, ROOT, Injection, Plan, Trial, run_trial
from tests.tiny_model import build_tiny_model
from zs_nemo.observability.files import write_between_marks

_NUM_STEPS = 12
_FAULTS_A_RUN = 4
"""Starting a run takes longer than recovering from a fault."""
_LOG = ROOT / "docs" / "results" / "faults.jsonl"
"""One line a run. A campaign that was broken off goes on from it."""
_MARK = "faults"
"""In docs/cluster.md, around the table."""
_NAMES = {
    "engine": "policy engine killed",
    "simulator": "simulator engine killed",
    "policy_rank": "training rank killed",
    "hang": "engine or rank stopped without an end",
    "driver": "driver killed",
    "torn_checkpoint": "driver killed, newest checkpoint cut off",
    "full_disk": "disk of the run directory filled",
}


def main(arguments: Sequence[str]) -> int:
    """Run what is asked for; return 0 if every run has survived."""
    parser = argparse.ArgumentParser(prog="launch/faults.sh", description=__doc__)
    parser.add_argument("--times", type=int, default=20, help="injections of each fault, at least (default 20)")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--seed", type=int, default=0, help="of the moments; other ones with another seed")
    parser.add_argument("--folder", type=Path, default=Path("runs/faults"), help="for the runs; failed ones stay")
    asked = parser.parse_args(arguments)
    folder = asked.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "tiny_model"
    if not model.exists():
        build_tiny_model(model)
    trials = read_trials(_LOG)
    for fault in asked.faults:
        plan = Plan(num_steps=_NUM_STEPS, faults=(fault,) * _FAULTS_A_RUN)
        while sum(each.fault == fault for trial in trials for each in trial.injections) < asked.times:
            name = f"{fault}_{sum(trial.name.startswith(f'{fault}_') for trial in trials)}"
            trial = run_trial(name, plan, model, folder, seed=asked.seed)
            trials.append(trial)
            with _LOG.open("a") as file:
                # What a run has said names files of whoever ran it.
                file.write(json.dumps(asdict(trial)).replace(f"{ROOT}/", "") + "\n")
            print(describe(trial), flush=True)
    counts = summary(trials)
    write_between_marks(ROOT / "docs" / "cluster.md", _MARK, table(counts))
    print(table(counts))
    return 0 if all(row["survived"] == row["injected"] for row in counts.values()) else 1


def read_trials(log: Path) -> list[Trial]:
    """Return the runs that were made before."""
    rows = [json.loads(line) for line in log.open()] if log.exists() else []
    return [Trial(**row | {"injections": [Injection(**each) for each in row["injections"]]}) for row in rows]


def describe(trial: Trial) -> str:
    """Return one line about a run."""
    verdict = "; ".join(trial.problems) or ("survived" if trial.survived else "over before the first fault")
    moments = ", ".join(
        f"in step {each.in_step} ({each.lost_steps} lost, {each.recovery_s:.1f} s)" for each in trial.injections
    )
    return f"{trial.name}: {moments}: {verdict}"


def summary(trials: Sequence[Trial]) -> dict[str, dict[str, float]]:
    """Return the counts by fault; those of a run that did not survive count as not survived."""
    counts = {}
    for fault in FAULTS:
        runs = [trial for trial in trials if any(each.fault == fault for each in trial.injections)]
        if runs:
            problems = [problem for trial in runs for problem in trial.problems]
            injected = [(trial, each) for trial in runs for each in trial.injections if each.fault == fault]
            counts[fault] = {
                "runs": len(runs),
                "injected": len(injected),
                "survived": sum(trial.survived for trial, _ in injected),
                "most_steps_repeated": max(each.lost_steps for _, each in injected),
                "hangs": sum("exit code -1" in problem for problem in problems),
                "orphans": sum("processes are left" in problem for problem in problems),
                "median_recovery_s": round(statistics.median(each.recovery_s for _, each in injected), 1),
            }
    return counts


def table(counts: dict[str, dict[str, float]]) -> str:
    """Return the counts as Markdown."""
    head = "| fault at random moments | injected | runs | survived | most steps repeated | hangs | orphans | recovery |"
    rows = [
        f"| {_NAMES[fault]} | {row['injected']} | {row['runs']} | {row['survived']} | {row['most_steps_repeated']} | "
        f"{row['hangs']} | {row['orphans']} | {row['median_recovery_s']} s |"
        for fault, row in counts.items()
    ]
    return "\n".join([head, "| --- |" + " ---: |" * 7, *rows, ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
