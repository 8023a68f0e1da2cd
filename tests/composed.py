"""Configurations as Hydra composes them from configs/, with the part that takes the time made once."""

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zs_nemo.config.registry import register

CONFIGS = Path(__file__).parents[1] / "configs"
GROUPS = {folder.name for folder in CONFIGS.iterdir() if folder.is_dir()}


def composed(recipe: str, *overrides: str) -> DictConfig:
    """Compose a recipe's configuration: files are chosen by Hydra, once for each choice, values set upon a copy."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    values = [each for each in parsed if not _is_choice(each)]
    if any(each.is_delete() or each.is_add() or each.is_sweep_override() for each in values):
        return _composed(recipe, overrides)
    cfg = deepcopy(_composed(recipe, tuple(each.input_line or "" for each in parsed if _is_choice(each))))
    try:
        for each in values:
            OmegaConf.update(cfg, each.key_or_group, each.value(), merge=True)
    except OmegaConfBaseException:
        # Hydra says it as a user would read it.
        return _composed(recipe, overrides)
    return cfg


def composed_dataclass(recipe: str, *overrides: str) -> Any:
    """Return the configuration as its dataclass, past all checks."""
    return OmegaConf.to_object(composed(recipe, *overrides))


def _is_choice(override: Override) -> bool:
    return override.key_or_group in GROUPS or override.key_or_group.startswith("hydra")


@cache
def _composed(recipe: str, overrides: tuple[str, ...]) -> DictConfig:
    GlobalHydra.instance().clear()
    register()
    with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
        return compose(recipe, overrides=list(overrides))
