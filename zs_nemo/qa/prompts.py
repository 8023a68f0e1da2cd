"""The texts around the policy's own: the prompt before it and the documents between its turns.

Raw completion text by default: a 135M model follows tags better that way. With ``api=chat`` the prompt is a user's
message in the policy's chat template.
"""

from zs_nemo.qa.tags import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    INFORMATION_CLOSE,
    INFORMATION_OPEN,
    SEARCH_CLOSE,
    SEARCH_OPEN,
    THINK_CLOSE,
    THINK_OPEN,
)

POLICY_PROMPT = (
    f"Answer the question. Reason inside {THINK_OPEN}{THINK_CLOSE}. "
    f"Look facts up with {SEARCH_OPEN}query{SEARCH_CLOSE} and read "
    f"the results inside {INFORMATION_OPEN}{INFORMATION_CLOSE}. "
    f"End with a short answer inside {ANSWER_OPEN}{ANSWER_CLOSE}.\n"
    "Question: {question}\n"
)

CLOSED_BOOK_SUFFIX = f"{THINK_OPEN}I answer from memory.{THINK_CLOSE}\n{ANSWER_OPEN}"

INFORMATION_HEADER = f"\n{INFORMATION_OPEN}\n"
INFORMATION_FOOTER = f"{INFORMATION_CLOSE}\n"
NOTHING_FOUND = f"{INFORMATION_HEADER}No results.\n{INFORMATION_FOOTER}"


def policy_prompt(question: str) -> str:
    """Return the text that an episode starts with; the policy goes on from its end."""
    return POLICY_PROMPT.format(question=question)


def closed_book_prompt(question: str) -> str:
    """Return a prompt that leaves the policy nothing to do but to close an answer that is already open."""
    return policy_prompt(question) + CLOSED_BOOK_SUFFIX


def document_line(number: int, text: str) -> str:
    """Return one document as it stands inside an information block; ``number`` starts at 1."""
    return f"Doc {number}: {text}\n"


def information_block(documents: list[str]) -> str:
    """Return the whole block as text, for scripted episodes; an episode that runs builds the same from token ids."""
    lines = "".join(document_line(number, text) for number, text in enumerate(documents, start=1))
    return INFORMATION_HEADER + lines + INFORMATION_FOOTER


# Baselines. Every prompt ends in a tag that is already open, which an untrained model only has to close; its example
# shows how. A chat server's model opens the tag itself.
_EXAMPLE_QUESTION = "Question: How many legs does a spider have?\n"
_EXAMPLE_ANSWER = f"{ANSWER_OPEN}eight{ANSWER_CLOSE}\n"

DIRECT_PROMPT = (
    f"Answer the question with a short answer inside {ANSWER_OPEN}{ANSWER_CLOSE}.\n"
    f"{_EXAMPLE_QUESTION}{_EXAMPLE_ANSWER}"
    "Question: {question}\n"
)
CHAIN_OF_THOUGHT_PROMPT = (
    f"Answer the question. Reason step by step inside {THINK_OPEN}{THINK_CLOSE}, then give a short answer inside "
    f"{ANSWER_OPEN}{ANSWER_CLOSE}.\n"
    f"{_EXAMPLE_QUESTION}{THINK_OPEN}A spider is an arachnid, and arachnids have eight legs.{THINK_CLOSE}\n"
    f"{_EXAMPLE_ANSWER}"
    "Question: {question}\n"
)
RETRIEVED_PROMPT = (
    f"Answer the question with the help of the search results inside {INFORMATION_OPEN}{INFORMATION_CLOSE}. Give a "
    f"short answer inside {ANSWER_OPEN}{ANSWER_CLOSE}.\n"
    f"{_EXAMPLE_QUESTION}"
    f"{INFORMATION_OPEN}\nDoc 1: Spiders are arachnids with eight legs.\n{INFORMATION_CLOSE}\n{_EXAMPLE_ANSWER}"
    "Question: {question}"
)
"""The block of search results follows at once; it begins with a line break."""
