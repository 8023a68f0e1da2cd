"""Ask a policy at the terminal, and watch it think, search and read.

    python recipes/ask.py "What is the capital of Peru?" policy.model=runs/quickstart/policy
    python recipes/ask.py "What is the capital of Peru?" policy.model=runs/quickstart/policy search=simulated
    python recipes/ask.py policy.model=runs/quickstart/policy             # one question after the other, until Ctrl-D
    python recipes/ask.py "Who wrote Hamlet?" search.corpus=wiki.jsonl search.num_documents=3
    python recipes/ask.py "Who wrote Hamlet?" search=web                  # needs SERPAPI_API_KEY in the environment
    python recipes/ask.py "Who wrote Hamlet?" policy.model=FOLDER experiment=zerosearch_evaluation   # of zerosearch_*
    python recipes/ask.py "Who wrote Hamlet?" 'endpoint.addresses=[http://127.0.0.1:8000/v1]' endpoint.served_model=NAME

Needs no key and no network by default: the policy is a folder, and BM25 searches the corpus of the facts world, which
knows countries, cities and elements. search=simulated has a second model write the documents, search=none leaves the
policy to its memory. Settings are KEY=VALUE as in recipes/evaluate.py; temperature=1 samples instead of greedy. The
limits of an episode are the quickstart's; experiment=zerosearch_evaluation has those of experiment=zerosearch_*.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status. The heavy imports come after ``--help`` has been answered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="QUESTION|KEY=VALUE", help="questions in quotes, and settings")
    parser.add_argument("--no-color", action="store_true", help="plain text, as it is where this is no terminal")
    options = parser.parse_args(arguments)
    overrides = [word for word in options.words if _is_setting(word)]
    questions = [word for word in options.words if not _is_setting(word)]

    from hydra import compose, initialize_config_dir
    from rich.console import Console

    from zs_nemo.cluster.asking import ask
    from zs_nemo.cluster.terminal import EXIT_BAD_INPUT, run_command
    from zs_nemo.config.ask import AskRecipeConfig
    from zs_nemo.config.command import REFUSED, check_arguments, explain
    from zs_nemo.config.registry import register

    register()
    try:
        check_arguments(overrides)
        with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
            composed = compose("ask", overrides=overrides)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except REFUSED as error:
        print(f"error: {explain(error, 'ask', overrides)}", file=sys.stderr)
        return EXIT_BAD_INPUT
    console = Console(no_color=options.no_color, highlight=False)
    asked = questions or _typed(console.input)
    answers: list[str | None] = []
    status = run_command(composed, AskRecipeConfig, lambda cfg: answers.extend(ask(cfg, asked, console)))
    return status or int(not all(answers))


def _is_setting(word: str) -> bool:
    """Return whether a word is an override: ``a.b=c``, with nothing in front of the sign that no setting has."""
    return re.match(r"(\+\+?|~)?[A-Za-z_][\w./@]*=", word) is not None


def _typed(read: Callable[[str], str]) -> Iterator[str]:
    """Yield what is typed, line by line, until the end of input or an empty line."""
    while True:
        try:
            line = read("question (empty to end): ").strip()
        except EOFError:
            return
        if not line:
            return
        yield line


if __name__ == "__main__":
    sys.exit(main())
