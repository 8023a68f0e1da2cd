"""How good a simulated search engine is, from what it answered beside a real one. Pure functions over records.

Does it do what it is asked for (useful documents support the answer, noisy ones do not), does it look like the real
engine, and does it say the same thing over and over?
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import mean, median
from typing import Any

import numpy as np
from scipy.stats import ks_2samp
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from zs_nemo.qa.rewards import normalise
from zs_nemo.search.judges import contains_answer

_FOLDS = 5
ABSENT = float("nan")


@dataclass(frozen=True, kw_only=True)
class SimulatedAnswer:
    """What the simulator wrote for one query, and what the real engine returns for it."""

    question_id: str
    answers: tuple[str, ...]
    query: str
    noisy: bool
    documents: tuple[str, ...]
    """Empty where the simulator wrote nothing that can be shown."""
    real_documents: tuple[str, ...]
    latency_s: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    leaks: int = 0
    """Noisy documents with a gold answer, those that were drawn again (``search.max_redraws``) among them."""

    @property
    def text(self) -> str:
        """All documents."""
        return "\n".join(self.documents)

    @property
    def supporting(self) -> list[bool]:
        """Whether each document contains a gold answer; without any, as one that does not."""
        return [contains_answer(document, self.answers) for document in self.documents] or [False]


def quality(records: Sequence[SimulatedAnswer]) -> dict[str, Any]:
    """Return all measures as a JSON object; those without data are NaN.

    Support and leaks are shares of documents, where a search without any counts as one that holds nothing.
    ``supported_searches`` is the share of searches for useful documents of which at least one holds the answer,
    ``leaks_per_noisy_search`` the number of leaking documents before and after any was drawn again.
    """
    useful = [record for record in records if not record.noisy]
    noisy = [record for record in records if record.noisy]
    return {
        "num_useful": len(useful),
        "num_noisy": len(noisy),
        "support_share": _share([holds for record in useful for holds in record.supporting]),
        "supported_searches": _share([any(record.supporting) for record in useful]),
        "leak_share": _share([holds for record in noisy for holds in record.supporting]),
        "leaks_per_noisy_search": _mean([record.leaks for record in noisy]),
        "separation_auc": separation_auc(records),
        "real_support_share": _share(
            [contains_answer(text, record.answers) for record in useful for text in record.real_documents]
        ),
        "empty_share": _share([not record.documents for record in records]),
        "likeness": likeness(useful),
        "diversity": diversity(records),
        "latency_s_median": median(record.latency_s for record in records) if records else ABSENT,
        "latency_s_p95": float(np.quantile([record.latency_s for record in records], 0.95)) if records else ABSENT,
        "prompt_tokens_per_search": _mean([record.prompt_tokens for record in records]),
        "completion_tokens_per_search": _mean([record.completion_tokens for record in records]),
    }


def answer_recall(text: str, answers: Sequence[str]) -> float:
    """Return the largest share of an answer's words that stand in ``text``, in [0, 1]."""
    words = set(normalise(text).split())
    shares = [len(words & set(parts)) / len(set(parts)) for answer in answers if (parts := normalise(answer).split())]
    return max(shares, default=0.0)


def separation_auc(records: Sequence[SimulatedAnswer]) -> float:
    """Return the chance that a useful answer holds more of a gold answer than a noisy one, ties counting half."""
    labels = [not record.noisy for record in records]
    if len(set(labels)) < 2:
        return ABSENT
    return float(roc_auc_score(labels, [answer_recall(record.text, record.answers) for record in records]))


def likeness(records: Sequence[SimulatedAnswer]) -> dict[str, float]:
    """Return how like the real engine's the documents are.

    ``length_distance`` is the Kolmogorov-Smirnov distance of their lengths in words, 0 for equal distributions.
    ``overlap`` is the mean share of words that a document has in common with the nearest real one (Jaccard).
    ``classifier_accuracy`` is that of a logistic regression on words and pairs of words that tells real from simulated
    documents of questions it has not seen; 0.5 is a perfect simulation.
    """
    simulated = [(record.question_id, text) for record in records for text in record.documents]
    real = [(record.question_id, text) for record in records for text in record.real_documents]
    if not simulated or not real:
        return dict.fromkeys(("words", "real_words", "length_distance", "overlap", "classifier_accuracy"), ABSENT)
    lengths, real_lengths = ([len(text.split()) for _, text in texts] for texts in (simulated, real))
    return {
        "words": mean(lengths),
        "real_words": mean(real_lengths),
        "length_distance": float(ks_2samp(lengths, real_lengths).statistic),
        "overlap": _mean([_nearest(text, record.real_documents) for record in records for text in record.documents]),
        "classifier_accuracy": classifier_accuracy(simulated, real),
    }


def classifier_accuracy(simulated: Sequence[tuple[str, str]], real: Sequence[tuple[str, str]]) -> float:
    """Return the balanced cross-validated accuracy of telling apart (question id, text) of either kind.

    All texts of a question are in the same fold: a classifier must not know a name from the other kind's documents.
    NaN with too few questions, or where those with simulated documents are all in one fold: nothing would be learned.
    """
    count = min(len(simulated), len(real))
    pairs = [*_evenly(simulated, count), *_evenly(real, count)]
    groups = [group for group, _ in pairs]
    if len(set(groups)) < _FOLDS:
        return ABSENT
    labels = np.repeat([0, 1], count)
    folds = list(GroupKFold(_FOLDS).split(pairs, labels, groups))
    if any(len(set(labels[learned])) < 2 for learned, _ in folds):
        return ABSENT
    model = make_pipeline(CountVectorizer(ngram_range=(1, 2), binary=True), LogisticRegression(max_iter=1000))
    predicted = cross_val_predict(model, [text for _, text in pairs], labels, cv=folds)
    return float(accuracy_score(labels, predicted))


def diversity(records: Sequence[SimulatedAnswer]) -> dict[str, float]:
    """Return ``distinct``, the share of different documents, and ``self_overlap``, how alike two for one query are.

    The second compares documents that were written for the same query and kind (Jaccard of their words).
    """
    texts = [text for record in records for text in record.documents]
    by_query: dict[tuple[str, str, bool], list[str]] = {}
    for record in records:
        by_query.setdefault((record.question_id, record.query, record.noisy), []).extend(record.documents)
    alike = [_jaccard(a, b) for group in by_query.values() for a, b in combinations(group, 2)]
    return {"distinct": len(set(texts)) / len(texts) if texts else ABSENT, "self_overlap": _mean(alike)}


def _nearest(text: str, others: Sequence[str]) -> float:
    return max((_jaccard(text, other) for other in others), default=0.0)


def _jaccard(first: str, second: str) -> float:
    a, b = set(normalise(first).split()), set(normalise(second).split())
    return len(a & b) / len(a | b) if a | b else 1.0


def _evenly(items: Sequence[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """Return ``count`` of the items, spread over all of them."""
    return [items[index * len(items) // count] for index in range(count)]


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else ABSENT


def _mean(values: Sequence[float]) -> float:
    return mean(values) if values else ABSENT
