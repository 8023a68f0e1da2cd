"""Build the facts world and print what is in it: questions by kind and split, the corpus, where it all is.

    python recipes/build_facts.py
    python recipes/build_facts.py seed=1 num_test_questions=400

The arguments are the settings of the group ``data``.
"""

import argparse
import sys
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zs_nemo.config.experiment import DataConfig
    from zs_nemo.qa.facts import FactsWorld


def summary(world: "FactsWorld") -> str:
    """Return the table of questions and the figures of the corpus as text."""
    from zs_nemo.qa.facts import SPLIT_SHARES

    splits = sorted(SPLIT_SHARES, key=("train", "validation", "test").index)
    counts = {split: Counter(question.kind for question in world.split(split)) for split in splits}
    kinds = sorted(set().union(*counts.values()))
    rows = [["kind", *splits], *([kind, *(str(counts[split][kind]) for split in splits)] for kind in kinds)]
    rows.append(["all", *(str(counts[split].total()) for split in splits)])
    lines = [f"{row[0]:28}" + "".join(f"{cell:>12}" for cell in row[1:]) for row in rows]
    with world.corpus.open(encoding="utf-8") as corpus:
        num_documents = sum(1 for _ in corpus)
    lines.append(f"\nCorpus: {num_documents:,} documents, {len(world.evidence):,} of them evidence: {world.corpus}")
    return "\n".join(lines)


def data_settings(overrides: list[str]) -> "DataConfig":
    """Return the settings of ``data`` with ``KEY=VALUE`` applied. Raises ``ValueError`` naming what cannot be taken."""
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

    from zs_nemo.config.command import did_you_mean
    from zs_nemo.config.experiment import DataConfig

    schema = OmegaConf.structured(DataConfig)
    try:
        data = OmegaConf.to_object(OmegaConf.merge(schema, OmegaConf.from_dotlist(overrides)))
    except ConfigKeyError as error:
        key = error.full_key or str(error.key)
        raise ValueError(f"unknown setting {key}{did_you_mean(key, list(map(str, schema)))}") from error
    except OmegaConfBaseException as error:
        raise ValueError(f"{error.full_key}: {str(error).partition(chr(10))[0]}") from error
    assert isinstance(data, DataConfig)
    return data


def main(arguments: list[str] | None = None) -> int:
    """Build with the settings of the command line; a wrong one is named and ends with status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="such as seed=1 or num_test_questions=400")
    options = parser.parse_args(arguments)

    from zs_nemo.qa.facts import load_facts_world

    try:
        print(summary(load_facts_world(data_settings(options.settings))))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
