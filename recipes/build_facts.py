"""Build the facts world and print what is in it: questions by kind and split, the corpus, where it all is.

    python recipes/build_facts.py
    python recipes/build_facts.py seed=1 num_test_questions=400

The arguments are the settings of the group ``data``.
"""

import sys
from collections import Counter

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zs_nemo.config.experiment import DataConfig
from zs_nemo.qa.facts import SPLIT_SHARES, FactsWorld, load_facts_world


def summary(world: FactsWorld) -> str:
    """Return the table of questions and the figures of the corpus as text."""
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


def main() -> int:
    """Build with the settings of the command line; a wrong one is named and ends with status 2."""
    try:
        schema = OmegaConf.structured(DataConfig)
        data = OmegaConf.to_object(OmegaConf.merge(schema, OmegaConf.from_cli()))
        assert isinstance(data, DataConfig)
        print(summary(load_facts_world(data)))
    except (ValueError, OmegaConfBaseException) as error:
        print(f"build_facts: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
