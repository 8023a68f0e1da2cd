"""Write docs/rung_7b.md and its picture: the 7B rung on two nodes of eight A100, as planned and as played.

python recipes/rung_reference.py
python recipes/rung_reference.py --check      # only say whether the page is up to date
"""

import argparse
import contextlib
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zs_nemo.config.recipe import GrpoRecipeConfig, RecipeConfig

ROOT = Path(__file__).parents[1]
PAGE, PICTURE = ROOT / "docs" / "rung_7b.md", ROOT / "docs" / "rung_7b.svg"
SHAPES = ROOT / "tests" / "data" / "models"
"""Folders with the published config.json of the models, which is all that planning needs."""
SETTINGS = (
    "experiment=zerosearch_grpo_7b",
    f"policy.model={SHAPES / 'Qwen2.5-7B'}",
    f"search.model={SHAPES / 'Qwen2.5-14B'}",
    "simulation.nodes=[1,8,64]",
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if the page is out of date")
    options = parser.parse_args(arguments)

    for path, text in pages().items():
        if options.check:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                print(f"error: {path.name} is out of date; run python recipes/rung_reference.py", file=sys.stderr)
                return 1
            continue
        path.write_text(text, encoding="utf-8")
        print(path)
    return 0


def pages() -> dict[Path, str]:
    """Return what belongs into each file."""
    from zs_nemo.cluster.simulation.gpu_model import GpuClusterBuilder
    from zs_nemo.cluster.simulation.published_speeds import published_speeds
    from zs_nemo.cluster.simulation.quantities import Sources
    from zs_nemo.cluster.simulation.rung_page import PlayedRung, rung_page
    from zs_nemo.weights.families import read_architecture

    cfg = configuration()
    rung = PlayedRung.play(cfg)
    models = {name: read_architecture(SHAPES / name) for name in ("Qwen2.5-7B", "Qwen2.5-14B", "Qwen3-14B")}
    builder = GpuClusterBuilder(cfg, rung.planned.layout, rung.planned.workload, Sources())
    speeds = published_speeds(builder, models, cfg.simulation.spread_of_tokens)
    text = rung_page(rung, speeds, plan=planned(cfg), picture_file=PICTURE.name)
    return {PAGE: text, PICTURE: rung.picture()}


def configuration() -> "GrpoRecipeConfig":
    """Return the rung's settings."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from zs_nemo.config.recipe import GrpoRecipeConfig
    from zs_nemo.config.registry import register, to_dataclass

    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return to_dataclass(compose("grpo", overrides=list(SETTINGS)), GrpoRecipeConfig)


def planned(cfg: "RecipeConfig") -> str:
    """Return what recipes/plan.py prints."""
    from recipes import plan

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        plan.plan(cfg)
    return printed.getvalue()


if __name__ == "__main__":
    sys.exit(main())
