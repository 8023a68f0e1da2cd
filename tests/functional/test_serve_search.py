"""The search server through its command line: it comes up, answers a foreign client, and ends without a trace."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

ROOT = Path(__file__).parents[2]
CLIENT = httpx.Client(timeout=120, trust_env=False, verify=False)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    texts = [f'"City {number}"\nThe mayor of city{number} is M{number}.' for number in range(50)]
    rows = [{"id": str(number), "contents": text} for number, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "recipes/serve_search.py", *arguments]


@contextmanager
def started(
    folder: Path, *arguments: str, timeout_s: float = 120, **environment: str
) -> Iterator[tuple[subprocess.Popen, str]]:
    """Start the recipe, wait for its address, and yield both; whatever is left of it afterwards is killed."""
    log = folder / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command("server.port=0", f"log_dir={folder / 'logs'}", *arguments),
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"ZS_NEMO_TEST_RUN": str(folder), "PYTHONPATH": str(ROOT)} | environment,
            start_new_session=True,
        )
    try:
        give_up_at = time.monotonic() + timeout_s
        while not (found := re.search(r"is served at (http://\S+)/retrieve", log.read_text())):
            assert process.poll() is None and time.monotonic() < give_up_at, log.read_text()[-4000:]
            time.sleep(0.1)
        yield process, found[1]
    finally:
        for left in processes_of(folder):
            left.kill()
        process.wait()


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return what is alive of a server, by the variable that all its processes inherit."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("ZS_NEMO_TEST_RUN") == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_help_comes_at_once() -> None:
    began = time.monotonic()
    shown = subprocess.run(command("--help"), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0 and "drain_timeout_s: 30.0" in shown.stdout
    assert time.monotonic() - began < 15


def test_bm25_is_served_to_a_foreign_client_until_a_signal(corpus: Path, tmp_path: Path) -> None:
    arguments = [f"search.corpus={corpus}", "server.token_variable=MY_TOKEN"]
    secrets = {"MY_TOKEN": "t0k3n", "ZS_NEMO_CACHE": str(tmp_path / "cache")}
    with started(tmp_path, *arguments, **secrets) as (process, url):
        body = {"queries": [f"mayor of city{number}" for number in range(20)], "topk": 1, "return_scores": True}
        assert CLIENT.post(f"{url}/retrieve", json=body).status_code == 401
        found = CLIENT.post(f"{url}/retrieve", json=body, headers={"Authorization": "Bearer t0k3n"}).json()["result"]
        assert [entries[0]["document"]["id"] for entries in found] == [str(number) for number in range(20)]
        assert CLIENT.get(f"{url}/health").json()["engine"] == "bm25"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert processes_of(tmp_path) == []
    log = (tmp_path / "server.log").read_text()
    assert log.endswith("ended\n") and "t0k3n" not in log


def test_a_port_in_use_a_missing_token_and_a_bad_corpus_are_refused_with_status_2(corpus: Path, tmp_path: Path) -> None:
    def refused(*arguments: str) -> str:
        environment = os.environ | {"ZS_NEMO_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
        environment.pop("MY_TOKEN", None)
        tried = subprocess.run(
            command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment
        )
        assert tried.returncode == 2 and "Traceback" not in tried.stderr
        return tried.stderr

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        # The facts world and its index would be built into the empty cache: the port is looked at before.
        assert f"server.port={port} cannot be listened on (Address already in use)" in refused(f"server.port={port}")
    assert not (tmp_path / "cache").exists()
    assert "MY_TOKEN is not set" in refused("server.port=0", "server.token_variable=MY_TOKEN")
    corpus.write_text("{}\n")
    assert "line 1: must be a JSON object" in refused("server.port=0", f"search.corpus={corpus}")


@pytest.mark.long
def test_a_simulator_of_our_own_is_served_with_noise_and_ends_with_the_server(tiny_model: Path, tmp_path: Path) -> None:
    arguments = ["search=simulated", f"search.model={tiny_model}", "search.dtype=float32", "search.kv_cache_gib=0.25"]
    with started(tmp_path, *arguments, "trainer.accelerator=cpu", timeout_s=300) as (process, url):
        body = {
            "queries": ["capital of Chad", "currency of Peru"],
            "questions": ["What is the capital of Chad?", "What is the currency of Peru?"],
            "answers": [["N'Djamena"], ["sol"]],
            "topk": 2,
            "seed": 3,
        }
        answers = [CLIENT.post(f"{url}/retrieve", json=body | {"noisy": noisy}) for noisy in (False, True, False)]
        assert [answer.status_code for answer in answers] == [200] * 3, answers[0].text
        useful, noisy, again = (answer.json()["result"] for answer in answers)
        assert useful == again != noisy, "a seed repeats an answer"
        foreign = CLIENT.post(f"{url}/retrieve?noise=1", json={"queries": ["Lima"], "topk": 1, "return_scores": True})
        assert foreign.status_code == 200 and foreign.json()["result"][0][0]["document"]["text"]
        metrics = CLIENT.get(f"{url}/metrics").text
        assert "zs_nemo_noisy_searches_total 3.0" in metrics
        assert CLIENT.get(f"{url}/health").json()["engine"] == "simulator"
        os.killpg(process.pid, signal.SIGINT)  # As Ctrl-C in a terminal does.
        assert process.wait(60) == 0
        assert processes_of(tmp_path) == []
