"""A recipe's command line: composes its settings with Hydra, and answers misspelt ones with what was meant."""

import argparse
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, EnumNode, ListConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from zs_nemo.config.other_trainers import ours_of
from zs_nemo.config.remote_search import RetrieverSearchConfig, WebSearchConfig
from zs_nemo.config.search import OTHER_PLACES, Bm25SearchConfig, SearchConfig, SimulatedSearchConfig

CONFIGS = Path(__file__).parents[2] / "configs"
REFUSED = (HydraException, OmegaConfBaseException, AssertionError)
"""What composing settings raises for some that cannot be composed; the last for one within a group that is null."""
_ENGINES: dict[str, type[SearchConfig]] = {
    "bm25": Bm25SearchConfig,
    "retriever": RetrieverSearchConfig,
    "web": WebSearchConfig,
    "simulated": SimulatedSearchConfig,
}
_EXIT_BAD_INPUT = 2
_LEAST_LIKENESS = 0.6

Main = Callable[[DictConfig], None]


def command(config_name: str) -> Callable[[Main], Callable[[], None]]:
    """Make a program of a function that takes the settings of ``configs/CONFIG_NAME.yaml``, as typed behind its name.

    Settings that cannot be composed end it with exit code 2 and the nearest right name.
    """

    def decorate(work: Main) -> Callable[[], None]:
        composing = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(work)

        @functools.wraps(work)
        def main() -> None:
            # Otherwise Hydra prints its own words and ends the process.
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")
            try:
                check_arguments(sys.argv[1:])
            except ValueError as error:
                sys.stderr.write(f"error: {error}\n")
                sys.exit(_EXIT_BAD_INPUT)
            try:
                composing()
            except REFUSED as error:
                sys.stderr.write(f"error: {explain(error, config_name, sys.argv[1:])}\n")
                sys.exit(_EXIT_BAD_INPUT)

        return main

    return decorate


def refuse_unknown(composed: DictConfig) -> None:
    """Raise ``ValueError`` for a setting that the dataclasses do not have.

    Hydra lets ``+`` add what nothing would ever read.
    """
    for key in _added(composed):
        raise ValueError(f"unknown setting {key}{did_you_mean(key, [*_names(composed), *_groups()])}")


def check_arguments(arguments: list[str]) -> None:
    """Raise ``ValueError`` for what Hydra takes for a sweep over several runs, and for a group without a choice.

    Of a sweep it would make the first run alone, which ends the process, and a group it answers with a stack trace.
    """
    for argument in arguments:
        key, _, value = argument.lstrip("+").partition("=")
        is_flag = argument == "-m" or ("--multirun".startswith(argument) and len(argument) > 2)
        if is_flag or (key == "hydra.mode" and value.upper() == "MULTIRUN"):
            raise ValueError(f"{argument} is not taken: {_as_loop(arguments)}")
        group = key.partition("@")[0]
        if value == "null" and group in _groups() and (key == group or "@" in key):
            left_out = f", or leave it out with ~{group}" if group == "experiment" else ""
            raise ValueError(f"{key}=null: choose one of {', '.join(_choices(group))}{left_out}")


def split_config_name(arguments: list[str], otherwise: str) -> tuple[str, list[str]]:
    """Return which configuration ``--config-name`` names, as Hydra takes it, and the other arguments.

    Raises ``ValueError`` where the name is missing.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config-name", "-cn", default=otherwise)
    try:
        options, others = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ValueError(f"--config-name is given no name; choose one of {', '.join(_recipes())}") from error
    return options.config_name, others


def explain(error: Exception, config_name: str, arguments: list[str]) -> str:
    """Return why settings were refused, with the nearest right name; ``arguments`` are those of the command line.

    ``error`` is one of ``REFUSED``; an ``AssertionError`` that is not about settings is raised again.
    """
    config_name, arguments = split_config_name(arguments, config_name)
    if told := _explain_place(error, arguments):
        return told
    if isinstance(error, AssertionError):
        raise error
    if isinstance(error, MissingConfigException):
        return _explain_missing(error, config_name)
    return (
        _explain_cause(error.__cause__, config_name, arguments)
        or _explain_words(str(error), config_name, arguments)
        or " ".join(filter(None, (str(error), str(error.__cause__ or ""))))
    )


def _explain_cause(cause: BaseException | None, config_name: str, arguments: list[str]) -> str:
    """Return what is wrong with a setting by what OmegaConf raised for it; nothing where it tells of none."""
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.full_key:
        return _explain_unknown(_typed(cause.full_key, arguments), config_name, arguments)
    if isinstance(cause, ValidationError) and cause.full_key:
        message = str(cause).partition("\n")[0]
        if "is not a ListConfig" in message:
            return _explain_list(cause.full_key, arguments)
        return f"{cause.full_key}: {message}{_meant_member(cause)}"
    return ""


def _explain_words(words: str, config_name: str, arguments: list[str]) -> str:
    """Return what is wrong by Hydra's words, where nothing else tells it; nothing for words that are not known."""
    if sweep := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '([^=]+)=(.*)'", words):
        return _explain_sweep(sweep[1], sweep[2], config_name, arguments)
    foreign = re.match(r"In '(.+)/(.+)': .*\nKey '.*' not in .*\n\s*full_key: (\S+)", words)
    if foreign and not any(foreign[3] in argument for argument in arguments):
        return _explain_file(foreign[1], foreign[2], foreign[3], config_name, arguments)
    # Of a group that is chosen for another place (+search@evaluation.search=...) Hydra hands on words alone.
    if place := re.search(r"^Key '.*' not in .*\n\s*full_key: (\S+)", words, re.MULTILINE):
        return _explain_unknown(place[1], config_name, arguments)
    if group := re.search(r"config group '(.*)' does not exist", words):
        return f"unknown group {group[1]}{did_you_mean(group[1], _groups())}"
    if twice := re.match(r"Multiple values for (\S+)\. ", words):
        return f"{twice[1]} is chosen already; to choose another, give {twice[1]}=NAME once and without a plus"
    return ""


def _explain_unknown(key: str, config_name: str, arguments: list[str]) -> str:
    other_engine = _explain_other_engine(key, arguments)
    return other_engine or f"unknown setting {key}{did_you_mean(key, _known(config_name, arguments))}"


def _explain_place(error: Exception, arguments: list[str]) -> str:
    """Return how an engine is chosen for another place than ``search``, if that was meant; otherwise nothing."""
    typed = [argument.lstrip("+").partition("=") for argument in arguments]
    for place in OTHER_PLACES:
        if isinstance(error.__cause__, ValidationError) and error.__cause__.full_key == place:
            choice = next((value for key, _, value in typed if key == place), "NAME")
            return f"{place} takes an engine of the group search, which is chosen so: +search@{place}={choice}"
        inner = next((key for key, _, _ in typed if key.startswith(f"{place}.")), "")
        if inner and isinstance(error, AssertionError):
            engine = next(iter(_engines_with(inner, place)), "NAME")
            return (
                f"{inner} is a setting of an engine, and {place} names none; choose it as well: "
                f"+search@{place}={engine} {inner}=..."
            )
    return ""


def _explain_other_engine(key: str, arguments: list[str]) -> str:
    """Return which engine a setting is of that the chosen one does not have; nothing where none has it."""
    for place in ("search", *OTHER_PLACES):
        if engines := _engines_with(key, place):
            group = place if place == "search" else f"+search@{place}"
            chosen = next((each for each in arguments if each.lstrip("+").startswith(f"{group.lstrip('+')}=")), "")
            how = f"in place of {chosen}" if chosen else "as well"
            return f"{key} is a setting of {group}={' or '.join(engines)}; give {group}={engines[0]} {how}"
    return ""


def _engines_with(key: str, place: str) -> list[str]:
    """Return the names of the engines that have the setting ``key`` where they stand at ``place``."""
    if not key.startswith(f"{place}."):
        return []
    setting = key.removeprefix(f"{place}.").partition(".")[0]
    return [name for name, kind in _ENGINES.items() if setting in {each.name for each in fields(kind)}]


def _explain_list(key: str, arguments: list[str]) -> str:
    typed = [argument.lstrip("+").partition("=") for argument in arguments]
    value = next((value for name, _, value in typed if name == key), "...")
    return f"{key} is a list; write '{key}=[{value}]'"


def _explain_sweep(key: str, values: str, config_name: str, arguments: list[str]) -> str:
    """Return how several values are given: as a list where the setting is one, else to several runs."""
    cfg = _composed(config_name, arguments)
    if cfg is not None and isinstance(OmegaConf.select(cfg, key), ListConfig):
        return _explain_list(key, arguments)
    return f"{key}={values} names several values: {_as_loop(arguments)}"


def _as_loop(arguments: list[str]) -> str:
    """Return how the runs are made that a sweep would have made, with the values of the first one where they stand."""
    swept = (re.fullmatch(r"([\w.]+)=([\w.+-]+(?:,[\w.+-]+)+)", argument) for argument in arguments)
    key, values = next(((each[1], each[2]) for each in swept if each), ("seed", "1,2"))
    name = key.rpartition(".")[2]
    return (
        "a command makes one run; make several in a loop of the shell, each under a name of its own: "
        f"for {name} in {values.replace(',', ' ')}; do COMMAND {key}=${name} exp_manager.name={name}_${name}; done"
    )


def _explain_file(group: str, choice: str, key: str, config_name: str, arguments: list[str]) -> str:
    """Return what is wrong with a file of a group that sets ``key``: misspelt, or of other recipes."""
    told = f"{group}={choice} sets {key}, which {config_name} does not have"
    near = did_you_mean(key, _known(config_name, arguments))
    if near and not any(key in _known(name, []) for name in _recipes() if name != config_name):
        return f"{told}{near}"
    return f"{told}; choose another, or set by itself what you need of it"


def _explain_missing(error: MissingConfigException, config_name: str) -> str:
    if error.options:
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        options = [option for option in error.options if not option.endswith("_schema")]
        return f"{group}={choice} is not there{did_you_mean(choice, options)}; choose one of {', '.join(options)}"
    if error.missing_cfg_file == config_name:
        near = did_you_mean(config_name, _recipes())
        return f"--config-name={config_name} is not there{near}; choose one of {', '.join(_recipes())}"
    return str(error)


def _groups() -> list[str]:
    return sorted(path.name for path in CONFIGS.iterdir() if path.is_dir())


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def _recipes() -> list[str]:
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def did_you_mean(key: str, known: list[str]) -> str:
    """Return the end of a sentence that names what comes nearest to ``key``; empty where nothing does."""
    if ours := ours_of(key):
        return f": did you mean {ours}?" if ours in known else ""
    ranked = sorted(known, key=lambda name: -_likeness(key, name))
    if not ranked or _likeness(key, ranked[0]) < _LEAST_LIKENESS:
        return ""
    return f": did you mean {ranked[0]}?"


def _likeness(key: str, name: str) -> float:
    """Return how like two settings are, in [0, 1]: the whole, or the last words where the group differs."""
    whole = SequenceMatcher(None, key, name).ratio()
    mine, its = key.rpartition("."), name.rpartition(".")
    last = SequenceMatcher(None, mine[2], its[2]).ratio()
    if name.startswith(f"{key}_"):
        # Words are missing at its end, and none is wrong.
        return max(whole, 0.9)
    # The same last word in another group is a better guess than half of a word in the same.
    return max(whole, 0.9 * last + 0.1 * SequenceMatcher(None, mine[0], its[0]).ratio()) if last > 0.8 else whole


def _typed(full_key: str, arguments: list[str]) -> str:
    """Return the whole key that was typed: OmegaConf names it as far as the first part that it does not know."""
    keys = [argument.lstrip("+~").partition("=")[0] for argument in arguments]
    return next((key for key in keys if key == full_key or key.startswith(f"{full_key}.")), full_key)


def _known(config_name: str, arguments: list[str]) -> list[str]:
    """Return the names of all settings, with those of the groups that were chosen where that can be composed."""
    cfg = _composed(config_name, arguments)
    return [*_names(cfg), *_groups()] if cfg is not None else []


def _composed(config_name: str, arguments: list[str]) -> DictConfig | None:
    """Return the settings with the groups that were chosen, or as they are by default; None where neither is there."""
    choices = [argument for argument in arguments if "." not in argument.partition("=")[0] and "=" in argument]
    for overrides in (choices, []):
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(CONFIGS), version_base="1.3"):
                return compose(config_name, overrides=overrides)
        except (HydraException, OmegaConfBaseException):
            continue
    return None


def _names(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yield the full keys of all settings and groups."""
    for key in _fields(cfg):
        name = f"{prefix}{key}"
        yield name
        node = cfg._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none():
            yield from _names(node, f"{name}.")


def _added(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yield the full keys of what is not a field of its dataclass."""
    known = set(_fields(cfg))
    for key in map(str, cfg):
        if key not in known:
            yield f"{prefix}{key}"
            continue
        node = cfg._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none():
            yield from _added(node, f"{prefix}{key}.")


def _fields(cfg: DictConfig) -> list[str]:
    kind = OmegaConf.get_type(cfg)
    # Where a setting is a mapping, any key is meant.
    return [each.name for each in fields(kind)] if is_dataclass(kind) else [str(key) for key in cfg]


def _meant_member(error: ValidationError) -> str:
    if not isinstance(error.child_node, EnumNode):
        return ""
    close = get_close_matches(str(error.value), [member.name for member in error.child_node.enum_type], n=1)
    return f": did you mean {close[0]}?" if close else ""
