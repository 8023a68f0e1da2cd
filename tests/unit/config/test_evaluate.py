"""Settings of an evaluation that cannot be meant are refused by name."""

from pathlib import Path

import pytest

from tests.composed import composed
from zs_nemo.config.ask import AskRecipeConfig
from zs_nemo.config.endpoints import ApiKind
from zs_nemo.config.evaluate import EvaluateRecipeConfig
from zs_nemo.config.recipe import GrpoRecipeConfig
from zs_nemo.config.registry import to_dataclass

CONFIGS = str(Path(__file__).parents[3] / "configs")


def load(*overrides: str, recipe: str = "evaluate"):
    """Compose a recipe's configuration."""
    kind = EvaluateRecipeConfig if recipe == "evaluate" else GrpoRecipeConfig
    return to_dataclass(composed(recipe, *overrides), kind)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["search=none"], r"search=none answers no search, but evaluate\.methods holds agent; take"),
        (["evaluate.methods=[]"], r"evaluate\.methods=\[\] must name at least one method"),
        (["evaluate.methods=[direct,direct]"], r"each once"),
        (["evaluate.limit=5", "data.test_counts=[3]"], r"evaluate\.limit=5 and data\.test_counts=\[3\] both say"),
        (["evaluate.temperature=-1"], r"evaluate\.temperature=-1\.0 must not be negative"),
        (["evaluate.max_failed_share=2"], r"evaluate\.max_failed_share=2\.0 must lie in \[0, 1\]"),
        (["endpoint.served_model=x"], r"endpoint\.addresses=\[\] and endpoint\.served_model='x' belong together"),
        (["endpoint.addresses=[nowhere]", "endpoint.served_model=x"], r"endpoint\.addresses: 'nowhere' must be"),
    ],
)
def test_an_evaluation_s_bad_settings_are_refused(overrides: list[str], why: str) -> None:
    with pytest.raises(Exception, match=why):
        load(*overrides)


def test_a_training_run_cannot_do_without_an_engine() -> None:
    with pytest.raises(Exception, match="search=none answers no search, and this recipe needs an engine"):
        load("search=none", recipe="grpo")
    assert load("search=none", "evaluate.methods=[direct]").search.num_documents == 1


def test_a_policy_of_a_published_experiment_is_asked_with_the_limits_that_it_is_evaluated_with() -> None:
    asked = to_dataclass(composed("ask", "experiment=zerosearch_evaluation"), AskRecipeConfig)
    evaluated = load("experiment=zerosearch_evaluation")
    assert (asked.api, asked.rollout, asked.search) == (ApiKind.chat, evaluated.rollout, evaluated.search)
    assert asked.search.num_documents == 5
