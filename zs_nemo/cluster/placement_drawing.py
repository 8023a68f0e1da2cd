"""A drawing of who sits where, as text: every process with its machine, its GPU and its parallel coordinates."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction

from zs_nemo.cluster.seating import Seating
from zs_nemo.cluster.setups import Layout, critic_settings
from zs_nemo.config.policy import PolicyConfig
from zs_nemo.config.recipe import RecipeConfig
from zs_nemo.generation.engine_setup import EngineSetup
from zs_nemo.observability.progress import Progress
from zs_nemo.observability.run_dir import RunDir

_WIDTH = 110
_WAYS = {"tp": "tensor", "cp": "context", "dp": "data", "pp": "pipeline"}

Cell = list[str]

_LINES_SHOWN = 50
"""A longer drawing is left to its file."""


def placement_shown(run_dir: RunDir, progress: Progress) -> Callable[[str, bool], None]:
    """Return what keeps a drawing in the run directory and, if it is of GPUs, shows it as well."""

    def show(drawing: str, on_gpus: bool) -> None:
        path = run_dir.write_placement(drawing)
        fits = on_gpus and drawing.count("\n") <= _LINES_SHOWN
        progress.say(drawing if fits else f"who sits where: {path}")

    return show


def draw_placement(cfg: RecipeConfig, layout: Layout, seating: Seating | None = None) -> str:
    """Return the drawing; without ``seating`` that of a run on CPUs."""
    critic = critic_settings(cfg)
    head = [_summary("policy", cfg.policy, layout.num_ranks)] if layout.num_ranks else []
    if layout.has_reference:
        head.append(f"{'reference':<10} on the policy's ranks")
    if critic is not None:
        own = _summary("critic", critic, layout.num_critic_ranks) if layout.num_critic_ranks else ""
        head.append(f"{own}, apart from the policy's" if own else f"{'critic':<10} on the policy's ranks")
    for role, setups in (("generation", layout.policy_engines), ("simulator", layout.simulator_engines)):
        if setups:
            head.append(f"{role:<10} {_engines(setups)}")
    ranks = _rank_labels("policy", cfg.policy, layout.num_ranks)
    if critic is not None:
        ranks += _rank_labels("critic", critic, layout.num_critic_ranks)
    body = _on_cpus(cfg, layout, ranks) if seating is None else _on_gpus(layout, ranks, seating)
    return "\n".join([*head, *body]) + "\n"


def coordinates(rank: int, settings: PolicyConfig, num_ranks: int) -> dict[str, tuple[int, int]]:
    """Return {way: (place, size)} of a rank, in megatron-core's order: tensor, context, data, pipeline."""
    tensor, context = settings.tensor_model_parallel_size, settings.context_parallel_size
    pipeline = settings.pipeline_model_parallel_size
    sizes = {"tp": tensor, "cp": context, "dp": num_ranks // (tensor * context * pipeline), "pp": pipeline}
    places = {}
    for way, size in sizes.items():
        rank, place = divmod(rank, size)
        places[way] = place, size
    return places


def _summary(role: str, settings: PolicyConfig, num_ranks: int) -> str:
    sizes = {way: size for way, (_, size) in coordinates(0, settings, num_ranks).items() if size > 1}
    ways = " x ".join(f"{_WAYS[way]} {size} ({way})" for way, size in sizes.items())
    return f"{role:<10} {_counted(num_ranks, 'rank')}" + (f": {ways}" if ways else "")


def _engines(setups: Sequence[EngineSetup]) -> str:
    size = setups[0].tensor_model_parallel_size
    return _counted(len(setups), "engine") + (f", each cut over {size} (tensor)" if size > 1 else "")


def _rank_labels(role: str, settings: PolicyConfig, num_ranks: int) -> list[Cell]:
    labels = []
    for rank in range(num_ranks):
        places = coordinates(rank, settings, num_ranks).items()
        told = " ".join(f"{way} {place}" for way, (place, size) in places if size > 1)
        labels.append([f"{role}-rank-{rank}", told])
    return labels


def _on_cpus(cfg: RecipeConfig, layout: Layout, ranks: Sequence[Cell]) -> list[str]:
    threads, alone = cfg.cluster.threads_per_process, cfg.cluster.threads_of_lone_engine
    rows = [[*label, _counted(threads, "thread")] for label in ranks]
    for setup in layout.engines:
        size = setup.tensor_model_parallel_size
        more = f", {alone} while alone" if alone and setup in layout.policy_engines else ""
        told = f"tp 0 to {size - 1}" if size > 1 else ""
        rows.append([setup.name, told, f"{_counted(setup.threads * size, 'thread')}{more}"])
    rows.append(["driver", "", "recipe, episodes, search"])
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = ["  ".join([*(text.ljust(w) for text, w in zip(row, widths, strict=False)), row[2]]) for row in rows]
    if cfg.cluster.ray_address:
        where = "the machines of the Ray cluster, where Ray finds room; no GPU"
    else:
        where = f"this machine: {_counted(len(os.sched_getaffinity(0)), 'core')} for all of them, no GPU"
    return ["", where, *_grid([lines])]


def _on_gpus(layout: Layout, ranks: Sequence[Cell], seating: Seating) -> list[str]:
    cells: list[list[Cell]] = [[[] for _ in range(machine.num_gpus)] for machine in seating.machines]
    where, placement = seating.gpus_of_bundle(), seating.placement
    shares = Counter(bundle for bundle, _ in (*placement.ranks, *placement.engines))
    for label, (bundle, share) in zip(ranks, placement.ranks, strict=True):
        machine, gpus = where[bundle]
        cells[machine][gpus[0]] += [line for line in _with_share(label, share) if line]
    for setup, (bundle, share) in zip(layout.engines, placement.engines, strict=True):
        machine, gpus = where[bundle]
        for place, gpu in enumerate(gpus):
            size = setup.tensor_model_parallel_size
            told = [f"tp {place} of {size}"] if size > 1 else []
            sleeps = ["asleep while ranks train"] if setup.sleeps and ranks else []
            label = [setup.name, ", ".join([*told, f"{setup.gpu_memory_utilization:.0%} of memory", *sleeps])]
            cells[machine][gpu] += _with_share(label, share)
    shared = {(where[bundle][0], where[bundle][1][0]) for bundle, count in shares.items() if count > 1}
    lines = []
    for index, host in enumerate(seating.machines):
        titled = [
            [f"GPU {gpu}" + (", shared" if (index, gpu) in shared else ""), *(cell or ["nobody"])]
            for gpu, cell in enumerate(cells[index])
        ]
        lines += ["", f"{host.name}: {_counted(host.num_gpus, 'GPU')}", *_grid(titled)]
    return lines


def _with_share(label: Cell, share: float) -> Cell:
    if share >= 1:
        return label
    name, told = label
    part = Fraction(share).limit_denominator(64)
    return [f"{name} ({part.numerator}/{part.denominator})", told]


def _grid(cells: Sequence[Cell]) -> list[str]:
    """Draw cells of one width side by side, in rows of as many as the page holds, of one length if that can be."""
    width = max(len(line) for cell in cells for line in cell)
    most = max(1, min(len(cells), (_WIDTH - 1) // (width + 3)))
    columns = next((count for count in range(most, most // 2, -1) if len(cells) % count == 0), most)
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]

    def rule(left: str, middle: str, right: str, count: int = columns) -> str:
        return left + middle.join(["─" * (width + 2)] * count) + right

    lines = [rule("┌", "┬", "┐")]
    for number, row in enumerate(rows):
        if number:
            lines.append(rule("├", "┼", "┤"))
        # Empty cells fill up the last row.
        padded = [*row, *([[]] * (columns - len(row)))]
        for place in range(max(len(cell) for cell in row)):
            texts = [cell[place] if place < len(cell) else "" for cell in padded]
            lines.append("│ " + " │ ".join(text.ljust(width) for text in texts) + " │")
    return [*lines, rule("└", "┴", "┘")]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
