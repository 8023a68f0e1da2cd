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
from omegaconf import DictConfig, EnumNode, OmegaConf
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
    cause = error.__cause__
    if told := _explain_place(error, arguments):
        return told
    if isinstance(error, AssertionError):
        raise error
    if isinstance(error, MissingConfigException):
        return _explain_missing(error, config_name)
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.full_key:
        key = _typed(cause.full_key, arguments)
        return f"unknown setting {key}{did_you_mean(key, _known(config_name, arguments))}"
    if isinstance(cause, ValidationError) and cause.full_key:
        message = str(cause).partition("\n")[0]
        return f"{cause.full_key}: {message}{_meant_member(cause)}"
    foreign = re.match(r"In '(.+)/(.+)': .*\nKey '.*' not in .*\n\s*full_key: (\S+)", str(error))
    if foreign and not any(foreign[3] in argument for argument in arguments):
        return _explain_file(foreign[1], foreign[2], foreign[3], config_name, arguments)
    # Of a group that is chosen for another place (+search@evaluation.search=...) Hydra hands on words alone.
    if place := re.search(r"^Key '.*' not in .*\n\s*full_key: (\S+)", str(error), re.MULTILINE):
        return f"unknown setting {place[1]}{did_you_mean(place[1], _known(config_name, arguments))}"
    if group := re.search(r"config group '(.*)' does not exist", str(error)):
        return f"unknown group {group[1]}{did_you_mean(group[1], _groups())}"
    if twice := re.match(r"Multiple values for (\S+)\. ", str(error)):
        return f"{twice[1]} is chosen already; to choose another, give {twice[1]}=NAME once and without a plus"
    return " ".join(filter(None, (str(error), str(cause or ""))))


def _explain_place(error: Exception, arguments: list[str]) -> str:
    """Return how an engine is chosen for another place than ``search``, if that was meant; otherwise nothing."""
    typed = [argument.lstrip("+").partition("=") for argument in arguments]
    for place in OTHER_PLACES:
        if isinstance(error.__cause__, ValidationError) and error.__cause__.full_key == place:
            choice = next((value for key, _, value in typed if key == place), "NAME")
            return f"{place} takes an engine of the group search, which is chosen so: +search@{place}={choice}"
        inner = next((key for key, _, _ in typed if key.startswith(f"{place}.")), "")
        if inner and isinstance(error, AssertionError):
            setting = inner.removeprefix(f"{place}.").partition(".")[0]
            having = (name for name, kind in _ENGINES.items() if setting in {each.name for each in fields(kind)})
            return (
                f"{inner} is a setting of an engine, and {place} names none; choose it as well: "
                f"+search@{place}={next(having, 'NAME')} {inner}=..."
            )
    return ""


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
    choices = [argument for argument in arguments if "." not in argument.partition("=")[0] and "=" in argument]
    for overrides in (choices, []):
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(CONFIGS), version_base="1.3"):
                return [*_names(compose(config_name, overrides=overrides)), *_groups()]
        except (HydraException, OmegaConfBaseException):
            continue
    return []


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
