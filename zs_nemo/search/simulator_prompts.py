"""The prompts of the simulated search engine: raw completion text, the part that is always the same first.

The fixed part makes the engine's prefix cache useful; what differs between two calls are the last three lines.
"""

from zs_nemo.search.demonstrations import Demonstration, Demonstrations, Step

USEFUL_HEAD = "A search engine returns a one-sentence encyclopedia text that answers the query.\n\n"
NOISY_HEAD = "A bad search engine returns a one-sentence text about something else than the query.\n\n"
STOP = ("\n",)
"""A document is one line."""


def useful_prompt(
    demonstrations: Demonstrations, question: str, answer: str, query: str, *, searched_before: bool = False
) -> str:
    """Return a prompt for a document that helps as far as the query goes.

    It tells the model what it must know to write one: the question and a gold answer. In the first of two steps the
    examples show documents that lead to the answer without it.

    A query that does not ask for what the question needs, be it that it names something else or nothing but a name,
    gets a document about what it asks, and the model sees no answer: a simulator that answers whatever is asked would
    teach a policy that queries do not matter. ``searched_before`` is whether the policy has searched already.
    """
    group = demonstrations.group_for(question)
    step = group.step_of(question, query, searched_before=searched_before)
    if step is None:
        return noisy_prompt(demonstrations, query, query)
    first_of_two = group.has_two_steps and step is Step.first
    examples = group.first if first_of_two else group.last
    cue = "leads to" if first_of_two else "mentions"
    shown = "".join(_useful(example, cue) + f" {example.document}\n\n" for example in examples)
    asked = Demonstration(question=question, answer=answer, query=query, document="")
    return USEFUL_HEAD + shown + _useful(asked, cue)


def noisy_prompt(demonstrations: Demonstrations, query: str, topic: str) -> str:
    """Return a prompt for a document that does not help: it is about ``topic`` instead.

    The model sees neither the question nor an answer. Without a topic it writes what it knows about the query, which
    is the answer in one case of ten.
    """
    shown = "".join(
        _noisy(example.query, about) + f" {example.document}\n\n" for about, example in demonstrations.noisy
    )
    return NOISY_HEAD + shown + _noisy(query, topic)


def _noisy(query: str, topic: str) -> str:
    return f"Query: {one_line(query)}\nText about {one_line(topic)}:"


def _useful(example: Demonstration, cue: str) -> str:
    return (
        f"Question: {one_line(example.question)}\nQuery: {one_line(example.query)}\n"
        f"Text that {cue} {one_line(example.answer)}:"
    )


def one_line(text: str) -> str:
    """Return ``text`` without line breaks, so that it cannot end its field of the prompt."""
    return " ".join(text.split())
