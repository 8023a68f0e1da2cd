"""What several packages' tests share."""

import pytest

from zs_nemo.config.experiment import DataConfig
from zs_nemo.qa.facts import FactsWorld, load_facts_world


@pytest.fixture(scope="session")
def facts_world(tmp_path_factory: pytest.TempPathFactory) -> FactsWorld:
    """The real facts world, built afresh once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZS_NEMO_CACHE", str(tmp_path_factory.mktemp("cache")))
        return load_facts_world(DataConfig())
