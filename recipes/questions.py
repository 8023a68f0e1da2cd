"""Fetch QA sets and check them before a run: how many questions, which rows are unusable, the hash of the content.

python recipes/questions.py                                   # the names that are known
python recipes/questions.py pyserini/nq:test pyserini/curatedtrec:test --show 2
python recipes/questions.py data/nq/test.jsonl hub:Alibaba-NLP/ZeroSearch_dataset:test --max-skipped-rows 10
"""

import argparse
import sys


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET", help="as in data.train and data.test")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print the first N questions of each set")
    parser.add_argument("--max-skipped-rows", type=int, default=0, metavar="N", help="as data.max_skipped_rows")
    options = parser.parse_args(arguments)

    from zs_nemo.evaluation.manifest import set_contents
    from zs_nemo.qa.sets.loading import load_set
    from zs_nemo.qa.sets.reference import Place, known_names, parse_reference
    from zs_nemo.qa.sets.rows import SkipBudget

    if not options.sets:
        print("\n".join(known_names()))
        return 0
    budget = SkipBudget(options.max_skipped_rows)
    try:
        for text in options.sets:
            reference = parse_reference(text)
            if reference.place is Place.facts:
                raise ValueError(f"{text!r} is built, not loaded; see recipes/build_facts.py")
            questions = load_set(reference, budget, default_split="test", say=lambda line: print(line, file=sys.stderr))
            for name, content in set_contents(questions).items():
                print(f"{name:24} {content.num_questions:8,} questions  sha256 {content.sha256}")
            for question in questions[: options.show]:
                print(f"    {question.id}: {question.text} -> {' | '.join(question.answers)}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if budget.skipped:
        print(f"{len(budget.skipped)} rows left out", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
