"""Grades an answer: token F1 and exact match after SQuAD's normalisation (Rajpurkar et al. 2016, section 6.1).

Strict: exact match means that the whole prediction equals a whole gold answer. A missing answer scores 0; nothing
outside the answer tag is ever looked at here.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WHOLE_ANSWERS = frozenset({"yes", "no", "noanswer"})


def normalise(text: str) -> str:
    """Return ``text`` in lower case without punctuation, articles and surplus white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str | None, answers: Sequence[str]) -> float:
    """Return 1.0 if the normalised prediction equals a normalised gold answer, else 0.0.

    A prediction that is missing or normalises to nothing ("the", "...") never matches.
    """
    if prediction is None or not (normalised := normalise(prediction)):
        return 0.0
    return float(any(normalised == normalise(answer) for answer in answers))


def token_f1(prediction: str | None, answers: Sequence[str]) -> float:
    """Return the largest token F1 over the gold answers, in [0, 1].

    Tokens are counted with repetition. As in HotpotQA's scorer, "yes" and "no" earn nothing for overlap with a longer
    text: they either match whole or score 0. A prediction that is missing or normalises to nothing scores 0.
    """
    if prediction is None:
        return 0.0
    predicted = normalise(prediction)
    return max((_pair_f1(predicted, normalise(answer)) for answer in answers), default=0.0)


def _pair_f1(predicted: str, gold: str) -> float:
    if not predicted or not gold:
        return 0.0
    if predicted == gold:
        return 1.0
    if predicted in _WHOLE_ANSWERS or gold in _WHOLE_ANSWERS:
        return 0.0
    predicted_tokens, gold_tokens = predicted.split(), gold.split()
    overlap = (Counter(predicted_tokens) & Counter(gold_tokens)).total()
    return 2 * overlap / (len(predicted_tokens) + len(gold_tokens))
