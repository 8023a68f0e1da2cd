"""Registers the schemas with Hydra and turns a composed configuration into dataclasses."""

from functools import cache
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from zs_nemo.config.ask import AskRecipeConfig
from zs_nemo.config.collect import CollectRecipeConfig
from zs_nemo.config.command import refuse_unknown
from zs_nemo.config.evaluate import EvaluateRecipeConfig
from zs_nemo.config.evaluate_simulator import EvaluateSimulatorConfig
from zs_nemo.config.policy import OPTIM_PLACES
from zs_nemo.config.recipe import GrpoRecipeConfig, PpoRecipeConfig, RecipeConfig, ReinforcePpRecipeConfig
from zs_nemo.config.remote_search import RetrieverSearchConfig, WebSearchConfig
from zs_nemo.config.search import (
    OTHER_PLACES,
    Bm25SearchConfig,
    NoSearchConfig,
    SimulatedSearchConfig,
    settings_stand_at,
)
from zs_nemo.config.server import ServeSearchConfig
from zs_nemo.config.sft_simulator import SftSimulatorRecipeConfig

Config = TypeVar("Config", bound=RecipeConfig)
Settings = TypeVar("Settings")


class _SharedNodes(dict[str, Any]):
    """The schemas, which are not copied with what holds them.

    Hydra copies its whole store for every look at a group: some ten seconds of ``--help`` on a slow core. It copies
    again each schema that it hands out, so the store's own are never written to.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> "_SharedNodes":
        return self


@cache
def register() -> None:
    """Make the schemas known to Hydra under the names that the files in configs/ build on. Once: it takes a second."""
    store = ConfigStore.instance()
    store.store(name="grpo_schema", node=GrpoRecipeConfig)
    store.store(name="reinforce_pp_schema", node=ReinforcePpRecipeConfig)
    store.store(name="ppo_schema", node=PpoRecipeConfig)
    store.store(group="search", name="simulated_schema", node=SimulatedSearchConfig)
    store.store(group="search", name="bm25_schema", node=Bm25SearchConfig)
    store.store(group="search", name="retriever_schema", node=RetrieverSearchConfig)
    store.store(group="search", name="web_schema", node=WebSearchConfig)
    store.store(group="search", name="none_schema", node=NoSearchConfig)
    store.store(name="serve_search_schema", node=ServeSearchConfig)
    store.store(name="collect_interactions_schema", node=CollectRecipeConfig)
    store.store(name="sft_simulator_schema", node=SftSimulatorRecipeConfig)
    store.store(name="evaluate_simulator_schema", node=EvaluateSimulatorConfig)
    store.store(name="evaluate_schema", node=EvaluateRecipeConfig)
    store.store(name="ask_schema", node=AskRecipeConfig)
    store.repo = _SharedNodes(store.repo)


def to_dataclass(cfg: DictConfig, kind: type[Settings]) -> Settings:
    """Convert once; past this only dataclasses.

    Raises ``ValueError`` from the checks in ``__post_init__``, for settings that the dataclasses do not have, and for
    those of a recipe that the command is not for.
    """
    refuse_unknown(cfg)
    for place, called in [
        *((place, "search") for place in OTHER_PLACES),
        *((place, "optim") for place in OPTIM_PLACES),
    ]:
        if isinstance(chosen := OmegaConf.select(cfg, place), DictConfig):
            with settings_stand_at(place, called):
                OmegaConf.to_object(chosen)
    converted = OmegaConf.to_object(cfg)
    if not isinstance(converted, kind):
        raise ValueError(
            f"the configuration is a {type(converted).__name__}, and this command works with a {kind.__name__}; name "
            "one that does with --config-name, or leave that out"
        )
    return converted
