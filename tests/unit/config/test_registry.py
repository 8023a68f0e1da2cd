from copy import deepcopy

from hydra.core.config_store import ConfigStore

from zs_nemo.config.registry import register


def test_the_store_is_not_copied_for_every_look_at_a_group_but_what_it_hands_out_is() -> None:
    register()
    register()
    store = ConfigStore.instance()
    assert deepcopy(store).repo is store.repo
    handed_out = store.load("grpo_schema.yaml").node
    handed_out.seed = 12345
    assert store.load("grpo_schema.yaml").node.seed != 12345
