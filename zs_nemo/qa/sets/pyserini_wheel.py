"""Real QA sets without the Hugging Face hub: what the wheel of pyserini carries, read out of its jar.

The wheel is fetched from the package index on the first use, checked, and never installed; of its 104 MiB only the
questions stay in the cache. The sets keep the licences of those who made them and are no part of this project.
"""

import ast
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock

from zs_nemo.config.cache import cache_folder
from zs_nemo.observability.config_file import redact
from zs_nemo.qa.sets.rows import BadRow, Row

VERSION = "0.16.1"
WHEEL = f"pyserini-{VERSION}-py3-none-any.whl"
WHEEL_SHA256 = "f3ad37216ee8dd3217130a10220498407b80823fcba7ab4e26eaf45b609cb77c"
WHEEL_MIB = 104
TOPICS = {
    # The sets of NQ-open as they were published; the jar has DPR's copies besides, with spaces around punctuation.
    ("nq", "dev"): "topics.nq.dev.txt",
    ("nq", "test"): "topics.nq.test.txt",
    ("triviaqa", "dev"): "topics.dpr.trivia.dev.txt",
    ("triviaqa", "test"): "topics.dpr.trivia.test.txt",
    ("webquestions", "test"): "topics.dpr.wq.test.txt",
    ("squad", "test"): "topics.dpr.squad.test.txt",
    ("curatedtrec", "test"): "topics.dpr.curated.test.txt",
}
"""(set, split) -> file in the jar."""
_FETCH = ["download", "--no-deps", "--no-cache-dir", "--disable-pip-version-check", "--quiet", f"pyserini=={VERSION}"]
_POLL_S = 0.2
_REPORT_EVERY_S = 5.0


def sets_folder() -> Path:
    """Return where the questions are kept."""
    return cache_folder() / "qa_sets" / f"pyserini-{VERSION}"


def wheel_in_cache() -> Path:
    """Return where a wheel that was brought by hand is looked for."""
    return cache_folder() / "qa_sets" / WHEEL


def topic_file(name: str, split: str, say: Callable[[str], None]) -> Path:
    """Return the file of one set; fetch the wheel on the first use. Safe to call from several processes at once.

    Raises ``ValueError`` with the remedy when no package index has it or what came is not the wheel that is known.
    """
    folder = sets_folder()
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                _fill(folder, say)
    return folder / TOPICS[name, split]


def topic_rows(path: Path) -> Iterator[Row | BadRow]:
    """Yield the rows in DPR's form (question, answer), whichever of the jar's two forms the file has."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _topic_row(f"{path.name}:{number}", line)


def _topic_row(place: str, line: bytes) -> Row | BadRow:
    try:
        text = line.decode("utf-8")
        if text.startswith("{"):
            return Row(place=place, values=json.loads(text))
        # The second column is quoted as in CSV when it holds quotation marks itself, and always a Python list.
        question, answers = next(csv.reader([text], delimiter="\t", strict=True))
        return Row(place=place, values={"question": question, "answer": ast.literal_eval(answers)})
    except (ValueError, SyntaxError, csv.Error) as error:
        return BadRow(place=place, reason=f"is no question with its answers ({type(error).__name__}: {error})")


def _fill(folder: Path, say: Callable[[str], None]) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        work = Path(temporary)
        wheel = wheel_in_cache()
        if not wheel.is_file():
            say(f"fetching pyserini {VERSION} ({WHEEL_MIB} MiB) for its question sets, once")
            wheel = _download(work, say)
        _check(wheel)
        new = work / "sets"
        new.mkdir()
        _extract(wheel, work, new)
        new.rename(folder)
    say(f"question sets of pyserini {VERSION} are in {folder}")


def _download(work: Path, say: Callable[[str], None]) -> Path:
    """Fetch the wheel with pip, which knows the index, proxies and certificates of this machine."""
    scratch = work / "pip"
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", *_FETCH, "--dest", str(work)]
    environment = os.environ | {"TMPDIR": str(scratch), "PIP_NO_INPUT": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True
    ) as pip:
        waited = 0.0
        try:
            while True:
                try:
                    errors = pip.communicate(timeout=_POLL_S)[1]
                    break
                except subprocess.TimeoutExpired:
                    waited += _POLL_S
                if waited >= _REPORT_EVERY_S:
                    waited = 0.0
                    say(f"fetching pyserini {VERSION}: {_mib_below(work)} of {WHEEL_MIB} MiB")
        except BaseException:
            pip.kill()
            raise
    wheel = work / WHEEL
    if pip.returncode or not wheel.is_file():
        raise ValueError(
            f"pyserini {VERSION}, which carries the question sets, could not be fetched from a package index "
            f"({_last_error(errors)}); check pip's index and the network with `pip download --no-deps "
            f"pyserini=={VERSION}`, or put {WHEEL} into {wheel_in_cache().parent}"
        )
    return wheel


def _last_error(errors: str) -> str:
    lines = [line for line in errors.splitlines() if line.startswith("ERROR")] or errors.splitlines()[-1:]
    return str(redact(lines[-1][:300])) if lines else "pip said nothing"


def _mib_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # pip moves its files about.
            continue
    return total // 2**20


def _check(wheel: Path) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise ValueError(
            f"{wheel.name} is not the wheel whose question sets are known: its SHA-256 is {found} instead of "
            f"{WHEEL_SHA256}; fetch it from another package index"
            + (f", or remove {wheel}" if wheel == wheel_in_cache() else "")
        )


def _extract(wheel: Path, work: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as outer:
        name = next(name for name in outer.namelist() if name.endswith("-fatjar.jar"))
        # On disk: a zip within a zip would be unpacked anew at every step backwards.
        with outer.open(name) as packed, (work / "topics.jar").open("wb") as jar:
            shutil.copyfileobj(packed, jar, 2**20)
    with zipfile.ZipFile(work / "topics.jar") as inner:
        for topics in TOPICS.values():
            (target / topics).write_bytes(inner.read(f"topics-and-qrels/{topics}"))
