"""A real search engine: BM25 over a local corpus (bm25s), with an index that is built once and kept on disk."""

import hashlib
import json
import os
import re
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zs_nemo.config.cache import cache_folder
from zs_nemo.types.search import Document, SearchRequest, SearchResult

if TYPE_CHECKING:
    import bm25s

# bm25s tries JAX out where it is installed, which would take three quarters of a GPU for it, and goes unused here.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

K1, B = 1.2, 0.75
_TOKENS_VERSION = 4
"""Raise it when ``tokens``, the parameters above or the digest change: an index on disk would not match any more."""
_PROGRESS_EVERY = 1000
_WORD = re.compile(r"[A-Za-z0-9]+")
_WITHOUT_SPACES = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3"
    "\U00020000-\U0003ffff"
)
"""Thai, Lao, Burmese, Khmer, Japanese, Chinese: nobody marks where a word ends. And Korean, whose particles are part of
the word: there, too, single characters are what a query and a document have in common."""
_INDIC = "\u0900-\u0963\u0966-\u0dff"
"""Their vowel signs are no letters to ``re``, and belong to the word all the same."""
_MODIFIERS = "\u02b0-\u02ff"
"""Such as the okina of Nuku\u02bbalofa: letters to ``re``, and mostly written as an apostrophe or not at all."""
_ANY_WORD = re.compile(rf"(?![\W_])[{_WITHOUT_SPACES}]|(?:[^\W_{_WITHOUT_SPACES}{_MODIFIERS}]|[{_INDIC}])+")
_FOLDED = str.maketrans(
    dict(zip("ŁłØøĐđÐðĦħŦŧı", "LlOoDdDdHhTti", strict=True))
    | {"ß": "ss", "ẞ": "SS", "Æ": "AE", "æ": "ae", "Œ": "OE", "œ": "oe", "Þ": "TH", "þ": "th"}
)
"""Latin letters that Unicode does not take for one with an accent, as they are written without a keyboard for them."""
_FOREIGN_SHARE = 0.001
"""Of a corpus's characters so many must be letters beyond ASCII, accents aside, for their words to count. The facts
world has fewer (names of towns, samples of languages); the published results rest on terms without them."""
_ALL_SCRIPTS_FILE = "all_scripts.json"
_STOP_WORDS_TEXT = (
    "a an and are as at be by did do does for from had has have he her his how i in is it its me my name no of on or "
    "she so tell that the their them there they this to use used using was we were what when where which who whom "
    "whose why will with would you your"
)
STOP_WORDS = frozenset(_STOP_WORDS_TEXT.split())
"""Words of a query that say nothing about what is sought."""


@dataclass(frozen=True, kw_only=True)
class BuiltIndex:
    """What ``build_index`` has done."""

    folder: Path
    num_documents: int
    is_new: bool
    """False if it was there already."""


class Bm25Search:
    """Searches a JSON-lines corpus of {"id", "contents"}. Implements ``types.search.SearchEngine``.

    The whole text of the documents stays in memory (20 MB for 115,000 short ones), the index is read from disk.
    """

    name = "bm25"

    def __init__(
        self, corpus: str | Path, cache: Path | None = None, *, on_building: Callable[[int], None] | None = None
    ) -> None:
        """Load ``corpus`` and its index; build the index in ``cache`` (default: the project's) on the first use.

        ``on_building`` is told the number of documents where that has to be done.
        Raises ``ValueError`` naming file and line for a corpus that cannot be read.
        """
        self._ids, self._texts = read_corpus(Path(corpus))
        self._index, self._all_scripts = _load_index(self._texts, cache or cache_folder(), on_building)

    async def search(self, request: SearchRequest) -> SearchResult:
        """Return the best documents, best first; none if no document shares a word with the query."""
        start = time.perf_counter()
        documents = self.lookup(request.query, request.num_documents)
        return SearchResult(documents=documents, source=self.name, latency_s=time.perf_counter() - start)

    def lookup(self, query: str, num_documents: int) -> tuple[Document, ...]:
        """Return at most ``num_documents`` documents with a score above 0; equal scores in the order of the corpus."""
        terms = query_tokens(query, all_scripts=self._all_scripts)
        known = [term for term in terms if term in self._index.vocab_dict]
        if not known:
            return ()
        scores = self._index.get_scores(known)
        count = min(num_documents, len(self._texts))
        threshold = np.partition(scores, -count)[-count]
        candidates = np.flatnonzero((scores >= threshold) & (scores > 0))
        best = candidates[np.argsort(-scores[candidates], kind="stable")][:count]
        return tuple(Document(text=self._texts[i], id=self._ids[i], score=float(scores[i])) for i in best)


def check_corpus(path: Path) -> None:
    """Raise ``ValueError`` as ``read_corpus`` does, for what the file's first line shows: in no time."""
    next(_documents(path))


def read_corpus(path: Path) -> tuple[list[str], list[str]]:
    """Return identifiers and texts; raise ``ValueError`` naming file and line for one that cannot be used."""
    ids, texts = [], []
    for identifier, text in _documents(path):
        ids.append(identifier)
        texts.append(text)
    return ids, texts


def _documents(path: Path) -> Iterator[tuple[str, str]]:
    """Yield identifier and text of each document, at least one; raise as ``read_corpus`` does."""
    if not path.is_file():
        raise ValueError(f"search.corpus={str(path)!r} is no file; leave it empty for the corpus of the facts world")
    number = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                identifier, text = row["id"], row["contents"]
                valid = isinstance(identifier, str) and isinstance(text, str) and bool(text.strip())
            except (ValueError, KeyError, TypeError):
                valid = False
            if not valid:
                raise ValueError(
                    f'search.corpus: {path}, line {number}: must be a JSON object with the texts "id" and "contents", '
                    f"but reads {line[:80]!r}; mend or remove the line"
                )
            yield identifier, text
    if not number:
        raise ValueError(f"search.corpus={str(path)!r} holds no document; name a file with at least one line")


def build_index(
    corpus: str | Path, cache: Path | None = None, on_progress: Callable[[str, int, int], None] | None = None
) -> BuiltIndex:
    """Build the index that ``Bm25Search`` will load for this corpus, unless it is there already.

    ``on_progress`` is called with the stage, what is done of it and its whole; a stage that cannot say is 0 of 1 until
    its end. Raises ``ValueError`` as ``Bm25Search`` does.
    """
    report = on_progress or (lambda stage, done, total: None)
    report("reading", 0, 1)
    _, texts = read_corpus(Path(corpus))
    report("reading", 1, 1)
    cache = cache or cache_folder()
    folder = index_folder(texts, cache)
    is_new = not folder.is_dir()
    if is_new:
        _write_index(texts, folder, report)
    return BuiltIndex(folder=folder, num_documents=len(texts), is_new=is_new)


def tokens(text: str, *, all_scripts: bool = False) -> list[str]:
    """Return the terms of a text: lower case, no accents, numbers without separators, light stemming of English.

    No stop words are removed and single letters count: "In" and "I" are chemical symbols. Letters beyond ASCII part
    words, unless ``all_scripts``: then words of any script are terms, and single characters where no space parts words.
    """
    return [_stem(word.lower()) for word in _words(text, all_scripts)]


def query_tokens(query: str, *, all_scripts: bool = False) -> list[str]:
    """Return the terms of a query, without stop words unless nothing else is left.

    A stop word in capitals within the query stays: in "symbol In" it is a name, in "In which" it is not.
    """
    found = _words(query, all_scripts)
    kept = [word for place, word in enumerate(found) if word.lower() not in STOP_WORDS or (place and word[0].isupper())]
    return [_stem(word.lower()) for word in kept or found]


def needs_all_scripts(texts: Iterable[str]) -> bool:
    """Return whether the corpus is more than English with some foreign names in it."""
    num_characters = num_foreign = 0
    for text in texts:
        num_characters += len(text)
        if not text.isascii():
            num_foreign += sum(not c.isascii() and c.isalpha() for c in _without_accents(text))
    return num_foreign > _FOREIGN_SHARE * num_characters


def _words(text: str, all_scripts: bool) -> list[str]:
    pattern = _WORD
    if not text.isascii():
        text = _without_accents(text)
        if all_scripts:
            # Composed again, a Korean syllable is one character and not three.
            text, pattern = unicodedata.normalize("NFC", text.translate(_FOLDED)), _ANY_WORD
    return pattern.findall(re.sub(r"(?<=\d),(?=\d{3})", "", text).replace("'", "").replace("’", ""))


def _without_accents(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


@lru_cache(maxsize=200_000)
def _stem(word: str) -> str:
    """Fold plurals and common endings: cities -> city, located -> locat, discoverer -> discover."""
    if len(word) <= 3 or word.isdigit():
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ation", "ating", "ated", "ing", "ered", "erer", "ery", "ed"):
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word[: -len(ending)] + {"ered": "er", "erer": "er", "ery": "er"}.get(ending, "")
    return word


def index_folder(texts: list[str], cache: Path) -> Path:
    """Return where the index of these texts is kept: its name changes with everything that it depends on."""
    import bm25s

    digest = hashlib.blake2b(f"{bm25s.__version__}/{_TOKENS_VERSION}/{K1}/{B}".encode(), digest_size=8)
    for text in texts:
        # A lone surrogate, which JSON can spell, has no encoding of its own.
        encoded = text.encode("utf-8", "surrogatepass")
        # With their lengths: texts hold line breaks, and the same lines can be cut into documents in several ways.
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return cache / f"bm25-{digest.hexdigest()}"


def _load_index(texts: list[str], cache: Path, on_building: Callable[[int], None] | None) -> tuple["bm25s.BM25", bool]:
    """Return the index, and whether its terms are of all scripts."""
    import bm25s

    folder = index_folder(texts, cache)
    if not folder.is_dir():
        if on_building is not None:
            on_building(len(texts))
        _write_index(texts, folder, lambda stage, done, total: None)
    return bm25s.BM25.load(str(folder)), json.loads((folder / _ALL_SCRIPTS_FILE).read_text())


def _write_index(texts: list[str], folder: Path, report: Callable[[str, int, int], None]) -> None:
    """Write the index so that it is there whole or not at all."""
    import bm25s

    folder.parent.mkdir(parents=True, exist_ok=True)
    all_scripts = needs_all_scripts(texts)
    terms = []
    for number, text in enumerate(texts):
        if number % _PROGRESS_EVERY == 0:
            report("splitting into terms", number, len(texts))
        terms.append(tokens(text, all_scripts=all_scripts))
    report("splitting into terms", len(texts), len(texts))
    if not any(terms):
        raise ValueError(
            f"search.corpus: none of its {len(texts)} documents holds a letter or a digit to find it by; name a corpus "
            "of texts"
        )
    report("indexing", 0, 1)
    index = bm25s.BM25(k1=K1, b=B)
    index.index(terms, show_progress=False)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        new = Path(temporary) / folder.name
        index.save(str(new), show_progress=False)
        (new / _ALL_SCRIPTS_FILE).write_text(json.dumps(all_scripts))
        try:
            new.rename(folder)
        except OSError:
            if not folder.is_dir():  # Otherwise another process was quicker and has written the same.
                raise
    report("indexing", 1, 1)
