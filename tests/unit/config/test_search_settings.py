"""The settings of remote engines and of the server: what composes, and what is refused with its rule."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import ConfigCompositionException

from tests.composed import composed, composed_dataclass
from zs_nemo.config.experiment import TrainerConfig
from zs_nemo.config.recipe import GrpoRecipeConfig
from zs_nemo.config.registry import to_dataclass
from zs_nemo.config.remote_search import RetrieverSearchConfig, WebSearchConfig
from zs_nemo.config.rollout import CurriculumConfig, CurriculumName
from zs_nemo.config.search import Bm25SearchConfig, SimulatedSearchConfig, settings_stand_at
from zs_nemo.config.server import ServerConfig, ServerNoiseConfig, ServeSearchConfig
from zs_nemo.observability.config_file import changed_settings, to_yaml

CONFIGS = str(Path(__file__).parents[3] / "configs")


def load(recipe: str, *overrides: str) -> Any:
    return composed_dataclass(recipe, *overrides)


def test_a_run_trains_on_a_retriever_or_on_the_web_by_one_override() -> None:
    assert load("grpo", "search=retriever", "search.url=http://host:9").search == RetrieverSearchConfig(
        url="http://host:9"
    )
    assert load("grpo", "search=web", "search.max_searches=5").search == WebSearchConfig(max_searches=5)


def test_a_run_is_judged_on_another_engine_of_the_same_group() -> None:
    cfg = load("grpo", "+search@evaluation.search=retriever", "evaluation.search.url=http://host:9")
    assert cfg.evaluation.search == RetrieverSearchConfig(url="http://host:9")
    assert load("grpo").evaluation.search is None
    with pytest.raises(ValueError, match=r"evaluation\.search is a simulator"):
        load("grpo", "+search@evaluation.search=simulated")


def test_the_server_serves_bm25_by_default_and_any_engine_by_one_override() -> None:
    cfg = load("serve_search")
    assert isinstance(cfg, ServeSearchConfig) and isinstance(cfg.search, Bm25SearchConfig)
    assert (cfg.server.host, cfg.search.num_documents) == ("127.0.0.1", 3)
    assert cfg.trainer.max_steps == 0, "how many steps another trainer makes is not known"
    for engine in ("simulated", "retriever", "web"):
        assert load("serve_search", f"search={engine}").search.num_documents == 3
    with pytest.raises(ConfigCompositionException):
        load("serve_search", "server.prot=1")


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("grpo", ["search=retriever", "search.url=host:8000"], r"search\.url='host:8000' must be an http or https"),
        ("grpo", ["search=retriever", "search.url=http://u:p4ss@host"], r"search\.url holds a user part"),
        ("grpo", ["search=retriever", "search.url='user:p4ss@host'"], r"search\.url holds a user part"),
        ("grpo", ["search=retriever", "search.url='http://host#p4ss'"], r"search\.url holds a user part"),
        ("grpo", ["search=retriever", "search.url='http://host:x'"], r"search\.url cannot be read as an address"),
        ("grpo", ["search=retriever", "search.timeout_s=0"], r"search\.timeout_s=0"),
        ("grpo", ["search=retriever", "search.max_concurrency=0"], r"search\.max_concurrency=0"),
        ("grpo", ["search=retriever", "search.batch_window_s=-1"], r"search\.batch_window_s=-1"),
        ("grpo", ["search=retriever", "search.token_variable=my-token"], r"search\.token_variable must be the NAME"),
        ("grpo", ["search=web", "search.max_searches=-1"], r"search\.max_searches=-1"),
        ("grpo", ["search=web", "search.num_documents=0"], r"search\.num_documents=0"),
        ("serve_search", ["server.host="], r"server\.host is empty; set it to 127\.0\.0\.1"),
        ("serve_search", ["server.port=65536"], r"server\.port=65536 must lie in 0\.\.65535"),
        ("serve_search", ["server.max_topk=0"], r"server\.max_topk=0 must be at least 1"),
        ("serve_search", ["server.max_body_mib=0"], r"server\.max_body_mib=0"),
        ("serve_search", ["server.max_queue=-1"], r"server\.max_queue=-1"),
        ("serve_search", ["server.max_queue=10"], r"server\.max_queries=4096 is more than .*= 74"),
        ("serve_search", ["server.token_variable=s3cret"], r"server\.token_variable must be the NAME"),
        ("serve_search", ["server.noise.probability=2"], r"server\.noise\.probability=2"),
        ("serve_search", ["server.noise.first_step=40"], r"server\.noise\.first_step=40 has no effect without"),
        ("serve_search", ["server.noise.first_step=-1"], r"server\.noise\.first_step=-1"),
        ("serve_search", ["search=none"], r"search=none answers no search, so there is nothing to serve; choose"),
        ("serve_search", ["search=simulated", "curriculum.name=adaptive"], r"curriculum\.name=adaptive follows the re"),
        ("serve_search", ["search=simulated", "curriculum.coin=trajectory"], r"set curriculum\.coin=query, or group"),
        ("serve_search", ["search=simulated", "search.seed_group=prompt"], r"set search\.seed_group=run, with"),
        ("grpo", ["+search@evaluation.search=none"], r"evaluation\.search=none answers no search"),
        (
            "serve_search",
            ["server.noise.probability=0.5", "server.noise.searches_per_step=9"],
            r"server\.noise\.probability=0\.5 has no effect",
        ),
    ],
)
def test_a_bad_value_is_refused_with_its_rule_and_no_secret(recipe: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(recipe, *overrides)
    for secret in ("p4ss", "my-token", "s3cret"):
        assert secret not in str(caught.value)


@pytest.mark.parametrize(
    ("curriculum", "max_steps", "lacks"),
    [
        (CurriculumConfig(), 0, True),
        (CurriculumConfig(), 1005, False),
        (CurriculumConfig(name=CurriculumName.constant, constant_noise=0.0), 0, False),
        # The mean of the steps of the published one.
        (CurriculumConfig(name=CurriculumName.constant), 0, True),
    ],
)
def test_the_server_does_not_guess_how_many_steps_another_trainer_makes(
    curriculum: CurriculumConfig, max_steps: int, lacks: bool
) -> None:
    def config(noise: ServerNoiseConfig) -> ServeSearchConfig:
        return ServeSearchConfig(
            search=SimulatedSearchConfig(),
            server=ServerConfig(noise=noise),
            curriculum=curriculum,
            trainer=TrainerConfig(max_steps=max_steps),
        )

    assert config(ServerNoiseConfig()).lacks_max_steps is lacks
    refused = pytest.raises(ValueError, match=r"server\.noise\.searches_per_step=9 .* set trainer\.max_steps")
    with refused if lacks else nullcontext():
        config(ServerNoiseConfig(searches_per_step=9, first_step=3))


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        (
            "grpo",
            ["+search@evaluation.search=retriever", "evaluation.search.url=x"],
            r"^evaluation\.search\.url='x' mu",
        ),
        (
            "grpo",
            ["+search@evaluation.search=retriever", "evaluation.search.url=ftp://search.host"],
            r"^evaluation\.search\.url='ftp://search\.host' mu",
        ),
        ("grpo", ["+search@evaluation.search=web", "evaluation.search.timeout_s=0"], r"^evaluation\.search\.timeout_s"),
        (
            "evaluate_simulator",
            ["+search@baseline=simulated", "baseline.num_words=0"],
            r"^baseline\.num_words=0 must be",
        ),
        ("evaluate", ["endpoint.pool.max_concurrency=0"], r"^endpoint\.pool\.max_concurrency=0 must be"),
        (
            "evaluate",
            ["endpoint.pool.deadline_s=5"],
            r"^endpoint\.pool\.request_timeout_s=300 .* endpoint\.pool\.deadli",
        ),
        ("collect_interactions", ["collect.llm.pool.open_s=0"], r"^collect\.llm\.pool\.open_s=0\.0 must be"),
        (
            "evaluate",
            ["endpoint.addresses=['http://u:p@h']"],
            r"endpoint\.addresses\[0\].*\(endpoint\.api_key_variable\)",
        ),
        ("collect_interactions", ["collect.llm.endpoints=['http://h?k=1']"], r"\(collect\.llm\.api_key_variable\)"),
        (
            "collect_interactions",
            ["+collect.llm.extra_body={top_k: 5}"],
            r"^collect\.llm\.extra_body=.* is sent to collect\.llm\.endpoints, and none are given",
        ),
        (
            "evaluate",
            ["endpoint.addresses=['http://h']", "endpoint.served_model=m", "+endpoint.extra_body={seed: 1}"],
            r"^endpoint\.extra_body names seed, which other settings decide",
        ),
    ],
)
def test_a_setting_is_named_where_it_stands(recipe: str, overrides: list[str], message: str) -> None:
    cfg = composed(recipe, *overrides)
    with pytest.raises(ValueError, match=message):
        to_dataclass(cfg, object)


def test_settings_of_other_groups_keep_their_names_beside_an_engines() -> None:
    with (
        pytest.raises(ValueError, match=r"^baseline\.a and research\.b, evaluation\.search\.c$"),
        settings_stand_at("baseline"),
    ):
        raise ValueError("search.a and research.b, evaluation.search.c")


def test_where_an_engine_is_and_what_it_may_cost_can_change_on_resume_what_it_returns_cannot() -> None:
    before = to_yaml(GrpoRecipeConfig(search=WebSearchConfig()))
    moved = GrpoRecipeConfig(search=WebSearchConfig(max_searches=9, timeout_s=5.0, api_key_variable="OTHER"))
    other = GrpoRecipeConfig(search=WebSearchConfig(answer_box=False))
    assert changed_settings(before, moved) == []
    assert changed_settings(before, other) == ["search.answer_box: True -> False"]


def test_another_engine_is_told_from_one_whose_settings_are_new() -> None:
    closed_book = ["policy.model=/models/policy", "evaluate.methods=[direct]", "data.test=[facts:test]"]
    none, bm25 = (composed_dataclass("evaluate", *closed_book, f"search={name}") for name in ("none", "bm25"))
    assert changed_settings(to_yaml(none), bm25) == ["search.corpus: (absent) -> "]
    assert changed_settings(to_yaml(bm25), none) == ["search.corpus:  -> (absent)"]
