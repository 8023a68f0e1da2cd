"""The page of the docs on a rung of the ladder: what the planner and the simulation say of it, in words and tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from zs_nemo.cluster.memory_plan import multiplied_parameters
from zs_nemo.cluster.simulation.planned_cluster import PlannedCluster, Played
from zs_nemo.cluster.simulation.published_speeds import PublishedSpeed
from zs_nemo.cluster.simulation.result_page import advice, picture, table
from zs_nemo.config.recipe import RecipeConfig
from zs_nemo.config.search import SimulatedSearchConfig
from zs_nemo.weights.families import read_architecture


@dataclass(frozen=True, kw_only=True)
class PlayedRung:
    """A rung that was played in all ways that the page has."""

    cfg: RecipeConfig
    planned: PlannedCluster
    sections: Mapping[str, Sequence[Played]]

    @classmethod
    def play(cls, cfg: RecipeConfig) -> "PlayedRung":
        """Play it as configured, with more of each role, overlapped, and on ``simulation.nodes``."""
        planned = PlannedCluster(cfg)
        sections = {
            "configured": [planned.as_configured()],
            "grown": planned.with_more(),
            "overlap": planned.overlapped(),
            "nodes": planned.on_nodes(),
        }
        return cls(cfg=cfg, planned=planned, sections=sections)

    @property
    def base(self) -> Played:
        """As configured."""
        return self.sections["configured"][0]

    def picture(self) -> str:
        """Return the bars as an SVG document."""
        return picture(self.sections)


def rung_page(rung: PlayedRung, speeds: Sequence[PublishedSpeed], *, plan: str, picture_file: str) -> str:
    """Return the page as Markdown; ``plan`` is what the planner prints, ``picture_file`` where the bars lie."""
    source = files("zs_nemo.cluster.simulation").joinpath("rung_page.md.j2").read_text(encoding="utf-8")
    template = Environment(keep_trailing_newline=True, undefined=StrictUndefined).from_string(source)
    return template.render(
        **_played_facts(rung),
        **_rates(rung),
        plan=plan.rstrip(),
        table=table(rung.sections),
        advice=advice(rung.base, rung.sections["grown"]),
        picture=picture_file,
        speeds=speeds,
        numbers=list(rung.planned.sources.quantities.values()),
    )


def _played_facts(rung: PlayedRung) -> dict[str, Any]:
    numbers, base = rung.planned.sources.quantities, rung.base.steps
    overlapped, most = rung.sections["overlap"][-1].steps, rung.sections["nodes"][-1]
    return {
        "nodes": str(rung.cfg.simulation.nodes).replace(" ", ""),
        "policy_billions": f"{numbers['generation: parameters'].value:.3f}",
        "simulator_billions": f"{numbers['simulator: parameters'].value:.3f}",
        "step_s": f"{base.step_s:.1f}",
        "rollout_share": f"{base.stage_s['rollout'] / base.step_s:.0%}",
        "max_steps": rung.cfg.trainer.max_steps,
        "run_hours": f"{rung.cfg.trainer.max_steps * base.step_s / 3600:.1f}",
        "overlapped_s": f"{overlapped.step_s:.1f}",
        "overlap_gain": f"{base.step_s / overlapped.step_s:.2f}",
        "most_gpus": most.num_gpus,
        "most_step_s": f"{most.steps.step_s:.1f}",
        "most_idle": f"{1 - most.steps.busy['training']:.0%}",
        "episodes": rung.base.num_episodes,
    }


def _rates(rung: PlayedRung) -> dict[str, Any]:
    numbers, base, workload = rung.planned.sources.quantities, rung.base.steps, rung.planned.workload
    ranks = rung.cfg.trainer.num_nodes * rung.cfg.trainer.devices
    tokens = workload.num_episodes * workload.sequence_tokens
    rate = tokens / base.stage_s["train"] / ranks
    flops_per_token = 6 * multiplied_parameters(read_architecture(rung.planned.layout.policy_folder))
    room = numbers["generation: sequences at once"].value
    written = workload.num_episodes * workload.turns_per_episode * workload.tokens_per_turn
    searches = workload.num_episodes * (workload.turns_per_episode - 1)
    simulated = searches * workload.simulator_requests * workload.simulator_completion_tokens
    assert isinstance(rung.cfg.search, SimulatedSearchConfig), "the page tells of a simulator"
    rollout_s, engines, simulators = (
        base.stage_s["rollout"],
        rung.cfg.generation.num_engines,
        rung.cfg.search.num_engines,
    )
    in_rollout = base.sequences["generation"] * base.step_s / rollout_s
    return {
        "ranks": ranks,
        "trained_tokens": f"{tokens:,.0f}",
        "train_s": f"{base.stage_s['train']:.1f}",
        "trained_rate": f"{rate:,.0f}",
        "mfu": f"{rate * flops_per_token / (1e12 * numbers['peak'].value):.0%}",
        "written_rate": f"{written / rollout_s / engines:,.0f}",
        "sequences": f"{in_rollout:.0f}",
        "room": f"{room:.0f}",
        "decode_rate": f"{1e3 * room / numbers[f'generation: step with {room:.0f}'].value:,.0f}",
        "simulator_rate": f"{simulated / rollout_s / simulators:,.0f}",
    }
