"""Overrides as a NeMo user types them are taken; misspelt ones are refused with what was meant."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from tests.composed import composed
from zs_nemo.config.command import (
    CONFIGS,
    REFUSED,
    _known,
    check_arguments,
    did_you_mean,
    explain,
    split_config_name,
)
from zs_nemo.config.other_trainers import OURS, ours_of
from zs_nemo.config.recipe import RecipeConfig
from zs_nemo.config.registry import register, to_dataclass

TYPED = {
    "trainer.num_nodes=2": "trainer.num_node=2",
    "trainer.devices=8": "trainer.device=8",
    "trainer.accelerator=gpu": "trainer.acelerator=gpu",
    "trainer.max_steps=203": "trainer.max_step=203",
    "policy.tensor_model_parallel_size=4": "policy.tensor_model_paralel_size=4",
    "policy.pipeline_model_parallel_size=2": "policy.pipeline_model_parallel_sizes=2",
    "policy.context_parallel_size=2": "policy.context_paralel_size=2",
    "policy.sequence_parallel=true": "policy.sequence_paralell=true",
    "policy.global_batch_size=256": "policy.global_batchsize=256",
    "policy.gradient_clip_val=1.0": "policy.gradient_clip_value=1.0",
    "policy.precision=fp32": "policy.precison=fp32",
    "policy.use_distributed_optimizer=true": "policy.use_distributed_optimiser=true",
    "policy.activations_checkpoint_granularity=full": "policy.activation_checkpoint_granularity=full",
    "policy.optim.lr=1e-6": "policy.optim.Lr=1e-6",
    "policy.optim.weight_decay=0.01": "policy.optim.weightdecay=0.01",
    "policy.optim.betas=[0.9,0.98]": "policy.optim.beta=[0.9,0.98]",
    "policy.optim.sched.name=CosineAnnealing": "policy.optim.shed.name=CosineAnnealing",
    "policy.optim.sched.warmup_steps=10": "policy.optim.sched.warmup_step=10",
    "policy.optim.sched.constant_steps=2": "policy.optim.sched.constant_step=2",
    "policy.optim.sched.min_lr=1e-7": "policy.optim.sched.minimum_lr=1e-7",
    "exp_manager.exp_dir=/results": "exp_manager.exp_dirs=/results",
    "exp_manager.name=my_run": "exp_manger.name=my_run",
    "exp_manager.create_wandb_logger=true": "exp_manager.create_wandb_loger=true",
    "exp_manager.wandb_logger_kwargs.project=search": "exp_manager.wandb_logger_kwarg.project=search",
    "exp_manager.save_top_k=3": "exp_manager.save_topk=3",
}
"""What a NeMo user types, and how it is mistyped."""


@pytest.fixture(autouse=True)
def schemas() -> None:
    register()
    GlobalHydra.instance().clear()


def refusal(*arguments: str, name: str = "grpo") -> str:
    chosen, overrides = split_config_name(list(arguments), name)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        try:
            to_dataclass(compose(chosen, overrides=overrides), RecipeConfig)
        except REFUSED as error:
            refused: Exception = error
        except ValueError as error:
            return str(error)
        else:
            return ""
    return explain(refused, name, list(arguments))


def test_overrides_as_a_nemo_user_types_them_are_taken_all_at_once() -> None:
    assert len(TYPED) >= 15
    assert refusal(*TYPED, "policy.stochastic_rounding=false") == ""


@pytest.mark.parametrize("override", TYPED)
def test_a_misspelt_override_is_refused_with_the_nearest_right_name(override: str) -> None:
    key, misspelt = override.partition("=")[0], TYPED[override].partition("=")[0]
    assert refusal(TYPED[override]) == f"unknown setting {misspelt}: did you mean {key}?"


def test_what_plus_would_add_is_refused_too_for_nothing_would_read_it() -> None:
    told = "unknown setting trainer.max_step: did you mean trainer.max_steps?"
    assert refusal("+trainer.max_step=3") == refusal("++trainer.max_step=3") == told


def test_a_setting_of_a_group_that_was_chosen_is_known() -> None:
    assert (
        refusal("search=retriever", "search.urll=http://h") == "unknown setting search.urll: did you mean search.url?"
    )


@pytest.mark.parametrize("name", ["WarmupPolicy", "WarmupAnnealing", "InverseSquareRootAnnealing"])
def test_a_schedule_is_taken_by_nemo_s_name_with_its_warm_up_as_a_share(name: str) -> None:
    sched = "policy.optim.sched"
    assert refusal(f"{sched}.name={name}", f"{sched}.warmup_steps=0", f"{sched}.warmup_ratio=0.1") == ""
    assert refusal(f"{sched}.name={name}", f"{sched}.warmup_steps=10", f"{sched}.warmup_ratio=null") == ""


def test_a_name_of_another_trainer_s_group_leads_to_ours() -> None:
    name = "tensor_model_parallel_size"
    assert refusal(f"model.{name}=2") == f"unknown setting model.{name}: did you mean policy.{name}?"


def names_of_other_trainers() -> dict[str, set[str]]:
    """Return our settings by theirs, from the table of the docs."""
    named: dict[str, set[str]] = {}
    table = (CONFIGS.parent / "docs" / "cluster.md").read_text().partition("## Settings of other trainers")[2]
    for row in (line for line in table.splitlines() if line.startswith("| `")):
        cells = [re.findall(r"`([^`=:]+)[^`]*`", cell) for cell in row.strip("|").split("|")]
        ours, *theirs = cells[:-1]
        for name in (name for column in theirs for name in column if re.search(r"\w\.\w", name)):
            for typed in {name.replace("ALG", algorithm) for algorithm in ("ppo", "reinforce")}:
                named.setdefault(typed, set()).update(ours)
    return named


def test_names_of_other_trainers_lead_to_ours_as_the_docs_have_it() -> None:
    of_ppo, of_others, named = _known("ppo", []), _known("grpo", []), names_of_other_trainers()
    assert len(named) > 100
    for typed in set(named) - set(of_ppo):
        known = of_others if re.search(r"\breinforce\.|^grpo\.", typed) else of_ppo
        (told,) = re.findall(r": did you mean (\S+)\?$", did_you_mean(typed, known)) or [""]
        assert told in named[typed], typed


def test_what_a_nemo_user_calls_a_micro_batch_is_not_taken_for_the_whole_batch() -> None:
    assert refusal("policy.micro_batch_size=4").endswith(": did you mean policy.train_mb_tokens?")
    assert refusal("policy.max_grad_norm=1").endswith(": did you mean policy.gradient_clip_val?")
    # PPO's alone.
    assert refusal("trainer.ppo.normalize_advantages=true") == "unknown setting trainer.ppo.normalize_advantages"


def test_the_price_of_a_web_search_is_set_in_one_place_and_its_former_name_leads_there() -> None:
    told = "unknown setting search.price_per_search: did you mean cost.usd_per_1000_searches?"
    for name in ("grpo", "serve_search"):
        assert refusal("search=web", "search.price_per_search=0.01", name=name) == told


def test_no_name_of_ours_is_taken_for_one_of_another_trainer_s() -> None:
    known = {*_known("ppo", []), *_known("grpo", [])}
    assert set(OURS.values()) <= known
    assert [name for name in known if ours_of(name)] == []


def test_what_nothing_is_like_is_refused_without_a_guess() -> None:
    assert refusal("qqq=1") == "unknown setting qqq"
    assert did_you_mean("anything", []) == ""


def test_a_misspelt_choice_of_a_group_is_answered_with_the_nearest_and_all_of_them() -> None:
    told = refusal("experiment=zerosearch_grp_7b")
    assert told.startswith("experiment=zerosearch_grp_7b is not there: did you mean zerosearch_grpo_7b?; choose one of")
    assert "bm25_schema" not in refusal("search=bm26")


@pytest.mark.parametrize("typed", ["expriment=zerosearch_grpo_7b", "+expriment=zerosearch_grpo_7b"])
def test_a_misspelt_group_is_refused_with_the_nearest_right_name(typed: str) -> None:
    assert refusal(typed) == "unknown setting expriment: did you mean experiment?"


def test_a_plus_before_a_group_that_has_a_choice_is_refused_with_the_remedy() -> None:
    told = "experiment is chosen already; to choose another, give experiment=NAME once and without a plus"
    assert refusal("+experiment=zerosearch_grpo") == told


def test_a_group_for_another_place_is_refused_with_the_nearest_right_name_of_either() -> None:
    assert refusal("+search@evaluation.search=retriever", "search=bm25") == ""
    assert refusal("+serch@evaluation.search=retriever") == "unknown group serch: did you mean search?"
    told = "unknown setting evaluation.serch: did you mean evaluation.search?"
    assert refusal("+search@evaluation.serch=retriever") == told
    told = "unknown setting baselin: did you mean baseline?"
    assert refusal("+search@baselin=prompted_7b", name="evaluate_simulator") == told


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (
            ["evaluation.search=bm25"],
            "evaluation.search takes an engine of the group search, which is chosen so: +search@evaluation.search=bm25",
        ),
        (
            ["evaluation.search.corpus=wiki.jsonl"],
            "evaluation.search.corpus is a setting of an engine, and evaluation.search names none; choose it as well: "
            "+search@evaluation.search=bm25 evaluation.search.corpus=...",
        ),
        (
            ["evaluation.search.urll=http://h"],
            "evaluation.search.urll is a setting of an engine, and evaluation.search names none; choose it as well: "
            "+search@evaluation.search=NAME evaluation.search.urll=...",
        ),
        (["+search@evaluation.search=bm25", "evaluation.search.corpus=wiki.jsonl"], ""),
    ],
)
def test_an_engine_for_evaluations_alone_is_answered_with_how_it_is_chosen(typed: list[str], told: str) -> None:
    assert refusal(*typed) == told


@pytest.mark.parametrize(
    ("typed", "name", "told"),
    [
        (["search.corpus=x.jsonl"], "grpo", "search.corpus is a setting of search=bm25; give search=bm25 as well"),
        (
            ["search.url=http://h"],
            "grpo",
            "search.url is a setting of search=retriever or web; give search=retriever as well",
        ),
        (
            ["search.max_searches=10"],
            "serve_search",
            "search.max_searches is a setting of search=web; give search=web as well",
        ),
        (
            ["search=bm25", "search.pool.open_s=3"],
            "grpo",
            "search.pool.open_s is a setting of search=simulated; give search=simulated in place of search=bm25",
        ),
        (
            ["+search@evaluation.search=bm25", "evaluation.search.url=http://h"],
            "grpo",
            "evaluation.search.url is a setting of +search@evaluation.search=retriever or web; give "
            "+search@evaluation.search=retriever in place of +search@evaluation.search=bm25",
        ),
    ],
)
def test_a_setting_of_an_engine_that_was_not_chosen_is_answered_with_the_engine(
    typed: list[str], name: str, told: str
) -> None:
    assert refusal(*typed, name=name) == told


@pytest.mark.parametrize(
    ("typed", "name", "meant"),
    [
        ("data.train=mine/train.jsonl", "grpo", "data.train=[mine/train.jsonl]"),
        ("data.train=nq:train,hotpotqa:train", "grpo", "data.train=[nq:train,hotpotqa:train]"),
        ("search.endpoints=http://h:8000/v1", "grpo", "search.endpoints=[http://h:8000/v1]"),
        ("evaluation.temperatures=0", "grpo", "evaluation.temperatures=[0]"),
        ("evaluate.methods=agent", "evaluate", "evaluate.methods=[agent]"),
    ],
)
def test_a_list_without_brackets_is_answered_with_how_it_is_written(typed: str, name: str, meant: str) -> None:
    assert refusal(typed, name=name) == f"{typed.partition('=')[0]} is a list; write '{meant}'"


@pytest.mark.parametrize(
    ("typed", "loop"),
    [
        ("seed=1,2", "for seed in 1 2; do COMMAND seed=$seed exp_manager.name=seed_$seed; done"),
        (
            "policy.optim.lr=1e-5,2e-5",
            "for lr in 1e-5 2e-5; do COMMAND policy.optim.lr=$lr exp_manager.name=lr_$lr; done",
        ),
        ("seed=range(1,3)", "for seed in 1 2; do"),
    ],
)
def test_several_values_of_a_setting_are_answered_with_a_loop(typed: str, loop: str) -> None:
    told = refusal(typed)
    assert told.startswith(f"{typed} names several values: a command makes one run; ") and loop in told
    assert "multirun" not in told


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["-m", "seed=1,2"], "-m is not taken: .* for seed in 1 2; do"),
        (["--multirun"], "--multirun is not taken: .* for seed in 1 2; do"),
        (["hydra.mode=MULTIRUN"], "hydra.mode=MULTIRUN is not taken"),
        (["experiment=null"], "experiment=null: choose one of quickstart, .*, or leave it out with ~experiment$"),
        (["search=null"], "search=null: choose one of bm25, .*, web$"),
        (["+search@evaluation.search=null"], "search@evaluation.search=null: choose one of bm25, .*, web$"),
    ],
)
def test_a_sweep_and_a_group_without_a_choice_are_refused_before_hydra_sees_them(typed: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check_arguments(typed)


def test_what_is_usual_passes_before_hydra_sees_it() -> None:
    check_arguments([*TYPED, "--cfg", "job", "--config-name", "ppo", "~experiment", "policy.model=/m", "search=bm25"])
    check_arguments(["evaluation.search=null", "trainer.max_steps=3", "--help"])


def test_an_assertion_that_is_not_about_settings_is_not_told_as_one() -> None:
    with pytest.raises(AssertionError, match="ours"):
        explain(AssertionError("ours"), "grpo", ["seed=2"])


def test_a_name_that_lacks_its_last_word_leads_to_the_whole_one() -> None:
    known = ["search.api", "search.api_key_variable", "search.token_variable", "endpoint.api_key_variable"]
    assert did_you_mean("search.api_key", known) == ": did you mean search.api_key_variable?"
    assert did_you_mean("search.apis", known) == ": did you mean search.api?"


def test_a_misspelt_setting_in_a_file_of_the_users_own_is_named_with_the_nearest_right_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zs_nemo.config.command._recipes", lambda: ["grpo", "ppo"])
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "mine.yaml").write_text("defaults: [simulated_schema, _self_]\nnum_document: 3\n")
    told = "search=mine sets search.num_document, which grpo does not have: did you mean search.num_documents?"
    assert refusal(f"hydra.searchpath=[{tmp_path}]", "search=mine") == told


def test_a_choice_that_sets_what_the_recipe_does_not_have_is_named() -> None:
    told = "cluster=local_gpu sets policy, which serve_search does not have; choose another"
    assert refusal("search=simulated", "cluster=local_gpu", name="serve_search").startswith(told)
    served = composed("serve_search", "search=prompted_7b", "curriculum=linear")
    assert (served.search.num_engines, served.curriculum.name.name) == (1, "linear")


@pytest.mark.parametrize("named", [["--config-name", "ppo"], ["--config-name=ppo"], ["-cn", "ppo"]])
def test_a_setting_of_another_recipe_that_was_named_is_known(named: list[str]) -> None:
    assert refusal(*named, "critic.num_rank=2") == "unknown setting critic.num_rank: did you mean critic.num_ranks?"


def test_a_misspelt_or_missing_name_of_a_recipe_is_answered_with_all_of_them() -> None:
    assert refusal("--config-name", "ppoo").startswith("--config-name=ppoo is not there: did you mean ppo?; choose one")
    with pytest.raises(ValueError, match=r"--config-name is given no name; choose one of .*grpo, ppo"):
        split_config_name(["seed=2", "--config-name"], "grpo")


def test_a_misspelt_value_is_answered_with_the_nearest_and_all_of_them() -> None:
    told = refusal("policy.optim.sched.name=CosinAnnealing")
    assert told.startswith("policy.optim.sched.name: Invalid value 'CosinAnnealing', expected one of [constant,")
    assert told.endswith("did you mean CosineAnnealing?")
    assert refusal("trainer.max_steps=many").startswith("trainer.max_steps: Value 'many'")


def run_recipe(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("+trainer.max_step=3", "error: unknown setting trainer.max_step: did you mean trainer.max_steps?\n"),
        ("--multirun", "error: --multirun is not taken: "),
        ("experiment=null", "error: experiment=null: choose one of "),
        ("search=finetuned_14b", "error: search.template=required: "),
        ("rollout.callback=no.such.Thing", "error: rollout.callback='no.such.Thing' cannot be imported"),
    ],
)
def test_a_command_ends_with_the_code_of_refused_input_and_no_stack_trace(typed: str, told: str) -> None:
    ended = run_recipe("recipes/plan.py", typed)
    assert ended.returncode == 2 and ended.stderr.startswith(told) and ended.stderr.count("\n") == 1


def test_the_doctor_answers_a_call_for_help() -> None:
    ended = run_recipe("recipes/doctor.py", "--help")
    assert ended.returncode == 0 and "launch/doctor.sh --config-name ppo" in ended.stdout
