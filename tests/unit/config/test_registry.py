from copy import deepcopy

import pytest
from hydra.core.config_store import ConfigStore

from tests.composed import composed
from zs_nemo.config.collect import CollectRecipeConfig, JudgedUnit
from zs_nemo.config.recipe import RecipeConfig
from zs_nemo.config.registry import register, to_dataclass


def test_the_store_is_not_copied_for_every_look_at_a_group_but_what_it_hands_out_is() -> None:
    register()
    register()
    store = ConfigStore.instance()
    assert deepcopy(store).repo is store.repo
    handed_out = store.load("grpo_schema.yaml").node
    handed_out.seed = 12345
    assert store.load("grpo_schema.yaml").node.seed != 12345


def test_the_settings_of_a_recipe_that_a_command_is_not_for_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a EvaluateSimulatorConfig, and this command .* a RecipeConfig; name one"):
        to_dataclass(composed("evaluate_simulator"), RecipeConfig)


def test_a_collection_brings_useless_documents_for_the_very_queries_that_useful_ones_are_learned_for() -> None:
    cfg = to_dataclass(composed("collect_interactions"), CollectRecipeConfig)
    assert cfg.collect.unit is JudgedUnit.document, "beside the first document, which helps, others are judged"
    assert cfg.search.num_documents > 1, "with one document the queries that find it have no useless one to learn from"
