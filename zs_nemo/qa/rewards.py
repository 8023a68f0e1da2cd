"""Grades an answer: token F1 and exact match after SQuAD's normalisation (Rajpurkar et al. 2016, section 6.1).

Strict: exact match means that the whole prediction equals a whole gold answer. What ZeroSearch published as exact match
is containment; it is kept beside the strict one as ``published_exact_match``, so that numbers can be set beside theirs.
A missing answer scores 0; nothing outside the answer tag is ever looked at here.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from zs_nemo.types.question import Question

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WHOLE_ANSWERS = frozenset({"yes", "no", "noanswer"})


@dataclass(frozen=True, kw_only=True)
class Grades:
    """What one answer is worth by every measure, each in [0, 1]."""

    em: float
    """Strict exact match."""
    published_em: float
    """Containment, which ZeroSearch reports as exact match."""
    f1: float


def grade(prediction: str | None, question: Question) -> Grades:
    """Grade an answer; None for none.

    Where the gold answers are regular expressions there are no tokens to count: F1 is then the exact match.
    """
    answers = question.answers
    if not question.answers_are_patterns:
        return Grades(
            em=exact_match(prediction, answers),
            published_em=published_exact_match(prediction, answers),
            f1=token_f1(prediction, answers),
        )
    match = pattern_match(prediction, answers)
    return Grades(em=match, published_em=pattern_containment(prediction, answers), f1=match)


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


def published_exact_match(prediction: str | None, answers: Sequence[str]) -> float:
    """Return 1.0 if a normalised gold answer stands anywhere in the normalised prediction: ZeroSearch's exact match.

    Letters are compared, not words: "art" stands in "Bart". A gold answer that normalises to nothing stands in every
    prediction. Both are as published (``em_check`` of ZeroSearch, ``subem_check`` of Search-R1; the ``em_check`` of the
    latter compares whole answers). A missing prediction scores 0.
    """
    if prediction is None:
        return 0.0
    normalised = normalise(prediction)
    return float(any(normalise(answer) in normalised for answer in answers))


def pattern_match(prediction: str | None, patterns: Sequence[str]) -> float:
    """Return 1.0 if the prediction begins with what a pattern describes: DrQA's rule (Chen et al. 2017), without case.

    The patterns of TREC describe what an answer must hold and seldom the whole of it, so that its end is left open.
    """
    if prediction is None or not (text := prediction.strip()):
        return 0.0
    return float(any(compiled_pattern(pattern).match(text) for pattern in patterns))


def pattern_containment(prediction: str | None, patterns: Sequence[str]) -> float:
    """Return 1.0 if what a pattern describes stands anywhere in the prediction."""
    if prediction is None or not (text := prediction.strip()):
        return 0.0
    return float(any(compiled_pattern(pattern).search(text) for pattern in patterns))


@lru_cache(maxsize=4096)
def compiled_pattern(pattern: str) -> re.Pattern[str]:
    """Return the compiled regular expression; raises ``re.error`` for one that is none."""
    return re.compile(pattern, re.IGNORECASE | re.MULTILINE)


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
