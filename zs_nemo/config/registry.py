"""Registers the schemas with Hydra and turns a composed configuration into dataclasses."""

from typing import cast

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from zs_nemo.config.grpo import GrpoRecipeConfig
from zs_nemo.config.search import Bm25SearchConfig, SimulatedSearchConfig


def register() -> None:
    """Make the schemas known to Hydra under the names that the files in configs/ build on."""
    store = ConfigStore.instance()
    store.store(name="grpo_schema", node=GrpoRecipeConfig)
    store.store(group="search", name="simulated_schema", node=SimulatedSearchConfig)
    store.store(group="search", name="bm25_schema", node=Bm25SearchConfig)


def to_grpo(cfg: DictConfig) -> GrpoRecipeConfig:
    """Convert once; past this only dataclasses. Raises ``ValueError`` from the checks in ``__post_init__``."""
    return cast(GrpoRecipeConfig, OmegaConf.to_object(cfg))
