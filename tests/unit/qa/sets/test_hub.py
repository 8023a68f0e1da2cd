"""The hub's own client against a cache on disk and against a server of this machine that refuses."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from tests.unit.qa.sets.files import flashrag, write_lines, write_parquet
from zs_nemo.qa.sets.hub import hub_files
from zs_nemo.qa.sets.loading import load_set
from zs_nemo.qa.sets.reference import FLASHRAG, parse_reference
from zs_nemo.qa.sets.rows import SkipBudget

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client, which is offline in all tests."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def snapshot(cache: Path, repository: str) -> Path:
    """Make the cache hold one commit of a data set and return where its files lie."""
    folder = cache / f"datasets--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    return folder / "snapshots" / COMMIT


def test_a_known_set_is_read_from_the_collection_that_the_peers_use(hub_cache: Path) -> None:
    files = snapshot(hub_cache, FLASHRAG)
    write_lines(files / "nq" / "test.jsonl", [flashrag(0, "q", "a")])
    write_lines(files / "popqa" / "test.jsonl", [flashrag(0, "another", "b")])
    (question,) = load_set(parse_reference("nq:test"), SkipBudget(0), default_split="test", say=lambda _: None)
    assert (question.id, question.text) == ("nq/test/0000", "q")


def test_the_parts_of_a_large_split_are_read_in_order(hub_cache: Path) -> None:
    files = snapshot(hub_cache, "owner/name")
    for part in (1, 0):
        rows = [{"question": f"part {part}", "golden_answers": ["a"]}]
        write_parquet(files / "data" / f"train-{part:05d}-of-00002.parquet", rows)
    reference = parse_reference("hub:owner/name:train")
    questions = load_set(reference, SkipBudget(0), default_split="train", say=lambda _: None)
    assert [(question.id, question.text) for question in questions] == [
        ("name/train/0000", "part 0"),
        ("name/train/0001", "part 1"),
    ]


def test_offline_without_the_set_says_so_with_the_remedy(hub_cache: Path) -> None:
    with pytest.raises(ValueError, match=r"HF_HUB_OFFLINE is set.*unset HF_HUB_OFFLINE.*pyserini/nq:test"):
        hub_files(parse_reference("nq:test"))


def test_a_split_that_the_cache_lacks_is_named(hub_cache: Path) -> None:
    write_lines(snapshot(hub_cache, FLASHRAG) / "nq" / "test.jsonl", [flashrag(0, "q", "a")])
    with pytest.raises(ValueError, match=r"'nq:dev'.*(nq/dev\.jsonl|cannot be fetched)"):
        hub_files(parse_reference("nq:dev"))


@pytest.fixture
def refusing_hub(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A hub on this machine that answers every request with what the test puts into the dictionary."""
    answer = {"status": "404", "code": "RepoNotFound"}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(int(answer["status"]))
            self.send_header("X-Error-Code", answer["code"])
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    yield answer
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        ("404", "RepoNotFound", r"owner/name.*does not exist, or is private; correct the name.*HF_TOKEN"),
        ("404", "RevisionNotFound", r"revision main\) does not exist"),
        ("403", "GatedRepo", r"asks for consent to its terms.*HF_TOKEN"),
    ],
)
def test_what_the_hub_refuses_is_told_with_the_remedy(
    refusing_hub: dict[str, str], status: str, code: str, message: str
) -> None:
    refusing_hub |= {"status": status, "code": code}
    with pytest.raises(ValueError, match=message):
        hub_files(parse_reference("hub:owner/name:train"))


def test_a_hub_that_cannot_be_reached_is_told_apart(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch, unused_port: int
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{unused_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(ValueError, match=r"could not be reached .*try again with a network"):
        hub_files(parse_reference("nq:test"))


@pytest.fixture
def unused_port() -> int:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        return server.server_port
