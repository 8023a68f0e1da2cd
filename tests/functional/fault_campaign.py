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

from tests.functional.injected_faults import FAULTS, ROOT, Trial, run_trial
from tests.tiny_model import build_tiny_model
from zs_nemo.observability.files import write_between_marks

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
    parser.add_argument("--times", type=int, default=20, help="trials of each fault that hit a step (default 20)")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--seed", type=int, default=0, help="of the moments; other ones with another seed")
    parser.add_argument("--folder", type=Path, default=Path("runs/faults"), help="for the runs; failed ones stay")
    asked = parser.parse_args(arguments)
    folder = asked.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "tiny_model"
    if not model.exists():
        build_tiny_model(model)
    log = folder / "trials.jsonl"
    trials = [Trial(**json.loads(line)) for line in log.open()] if log.exists() else []
    for fault in asked.faults:
        number = 1 + max((trial.number for trial in trials if trial.fault == fault), default=-1)
        while sum(trial.fault == fault and trial.in_step >= 0 for trial in trials) < asked.times:
            trial = run_trial(fault, number, model, folder, seed=asked.seed)
            trials.append(trial)
            with log.open("a") as file:
                file.write(json.dumps(asdict(trial)) + "\n")
            print(describe(trial), flush=True)
            number += 1
    counts = summary(trials)
    out = ROOT / "docs" / "results" / "faults.json"
    out.write_text(json.dumps({"seed": asked.seed, "faults": counts}, indent=2) + "\n")
    write_between_marks(ROOT / "docs" / "cluster.md", _MARK, table(counts))
    print(table(counts))
    return 0 if all(row["survived"] == row["injected"] for row in counts.values()) else 1


def describe(trial: Trial) -> str:
    """Return one line about a trial."""
    where = f"in step {trial.in_step}, {trial.lost_steps} lost" if trial.in_step >= 0 else "too late: not counted"
    verdict = "survived" if trial.survived else "; ".join(trial.problems)
    return (
        f"{trial.fault} {trial.number}: after {trial.delay_s:.1f} s, {where}: {verdict if trial.in_step >= 0 else ''}"
    )


def summary(trials: Sequence[Trial]) -> dict[str, dict[str, float]]:
    """Return the counts by fault of those trials that hit a step."""
    counts = {}
    for fault in FAULTS:
        hit = [trial for trial in trials if trial.fault == fault and trial.in_step >= 0]
        if hit:
            problems = [problem for trial in hit for problem in trial.problems]
            counts[fault] = {
                "injected": len(hit),
                "survived": sum(trial.survived for trial in hit),
                "most_steps_repeated": max(trial.lost_steps for trial in hit),
                "hangs": sum("exit code -1" in problem for problem in problems),
                "orphans": sum("processes are left" in problem for problem in problems),
                "median_recovery_s": round(statistics.median(trial.recovery_s for trial in hit), 1),
            }
    return counts


def table(counts: dict[str, dict[str, float]]) -> str:
    """Return the counts as Markdown."""
    head = "| fault, at a random moment | injected | survived | most steps repeated | hangs | runs with orphans |"
    rows = [
        f"| {_NAMES[fault]} | {row['injected']} | {row['survived']} | {row['most_steps_repeated']} | {row['hangs']} | "
        f"{row['orphans']} |"
        for fault, row in counts.items()
    ]
    return "\n".join([head, "| --- | --- | --- | --- | --- | --- |", *rows, ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
