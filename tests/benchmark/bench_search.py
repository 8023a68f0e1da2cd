"""2,000 concurrent searches through the simulator client against servers with a heavy-tailed latency.

    python tests/benchmark/bench_search.py

The server is this file in a process of its own: OpenAI's chat interface, log-normal latencies, and room for a bounded
number of requests at once; the others wait in line, as in a generation engine.

First all searches go to one server. The headline is their time over that of an ideal client that does not know what is
slow: a list schedule of the very service times that the server measured, in the order in which it began them, on as
many machines as it has room for. No client at all can be faster than the longest of them, or than their sum over the
room (``lower_bound_s``).

Then the same searches go to two servers of half the room, and one of them is killed (SIGKILL) when half of the searches
are done. Each document must hold a token that is made of its query and a secret that the servers and this file's checks
know, and the client does not: nobody but a server can have written it.
"""

import argparse
import asyncio
import hashlib
import heapq
import json
import os
import platform
import re
import secrets
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from aiohttp import web

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from zs_nemo.config.endpoints import ApiKind, EndpointPoolConfig  # noqa: E402
from zs_nemo.config.search import DocumentsPerCompletion, SimulatedSearchConfig  # noqa: E402
from zs_nemo.search.build import Simulator, build_simulator  # noqa: E402
from zs_nemo.types.keys import SampleKey  # noqa: E402
from zs_nemo.types.search import SearchFailure, SearchRequest, SearchResult  # noqa: E402

MEDIAN_S, SIGMA = 1.0, 0.8
DOCUMENTS = 5
_QUERY = re.compile(r"Typed into the search engine: (.+)")


def token(secret: str, query: str, number: int) -> str:
    """Return what the ``number``-th document for a query must hold."""
    return hashlib.blake2b(f"{secret}/{query}/{number}".encode(), digest_size=12).hexdigest()


def latency_s(query: str) -> float:
    """Return how long a query is served: log-normal, the same in every run."""
    seed = int.from_bytes(hashlib.blake2b(query.encode(), digest_size=8).digest(), "little")
    return float(MEDIAN_S * np.exp(SIGMA * np.random.default_rng(seed).standard_normal()))


@dataclass
class SlowServer:
    """Serves ``room`` requests at once."""

    secret: str
    room: int
    served_s: list[float] = field(default_factory=list)
    """Measured service times, in the order in which they began; waiting in line is no service."""

    async def complete(self, request: web.Request) -> web.Response:
        """Answer one request."""
        body = await request.json()
        found = _QUERY.search(body["messages"][-1]["content"])
        assert found is not None
        query = found[1]
        async with self._slots:
            place, began = len(self.served_s), time.monotonic()
            self.served_s.append(0.0)
            await asyncio.sleep(latency_s(query))
            lines = [f"Doc {n}: About {query}: {token(self.secret, query, n)}." for n in range(1, DOCUMENTS + 1)]
            message = {"role": "assistant", "content": "\n".join(lines)}
            answer = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}
            self.served_s[place] = time.monotonic() - began
        return web.json_response(answer)

    async def run(self) -> None:
        """Serve until the process is ended; the first line of the output is the port."""
        self._slots = asyncio.Semaphore(self.room)
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.complete)
        app.router.add_get("/health", self._health)
        app.router.add_get("/served", self._served)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _served(self, request: web.Request) -> web.Response:
        return web.json_response(self.served_s)


class ServerProcess:
    """One server in a process of its own. Use with ``with``."""

    def __init__(self, secret: str, room: int) -> None:
        command = [sys.executable, __file__, "--serve", str(room)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None and self._process.stdout is not None
        # Not on the command line, where everybody could read it.
        self._process.stdin.write(secret + "\n")
        self._process.stdin.close()
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def served_s(self) -> list[float]:
        """Return the service times so far."""
        with urllib.request.urlopen(f"{self.url}/served", timeout=60) as response:
            times: list[float] = json.load(response)
        return times

    def kill(self) -> None:
        """Kill the process: no connection is closed in order, no request is answered."""
        self._process.kill()

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()


def simulator(urls: Sequence[str], room: int) -> Simulator:
    """Return the client as a run would have it: the settings of ``search=simulated_endpoint``."""
    return build_simulator(
        SimulatedSearchConfig(
            endpoints=list(urls),
            served_model="stub",
            api=ApiKind.chat,
            documents_per_completion=DocumentsPerCompletion.all,
            num_documents=DOCUMENTS,
            max_tokens=600,
            pool=EndpointPoolConfig(max_concurrency=room),
        )
    )


def request(number: int) -> SearchRequest:
    """Return the ``number``-th search."""
    return SearchRequest(
        query=f"what is known of item {number}",
        question=f"Of what colour is item {number}?",
        answers=("blue", "azure"),
        key=SampleKey(run_seed=1, step=0, prompt=number, member=0),
        num_documents=DOCUMENTS,
    )


async def search_all(
    client: Simulator, count: int, on_done: Callable[[int], None] = lambda done: None
) -> tuple[float, list[SearchResult | SearchFailure]]:
    """Begin all searches at once; return seconds until the last is answered, and all outcomes."""
    done = 0

    async def one(number: int) -> SearchResult | SearchFailure:
        nonlocal done
        try:
            return await client.engine.search(request(number))
        except SearchFailure as failure:
            return failure
        finally:
            done += 1
            on_done(done)

    began = time.monotonic()
    outcomes = await asyncio.gather(*(one(number) for number in range(count)))
    seconds = time.monotonic() - began
    assert client.pool is not None
    await client.pool.close()
    return seconds, outcomes


def check(outcomes: Sequence[SearchResult | SearchFailure], secret: str) -> tuple[int, int]:
    """Return how many searches were lost, and how many documents no server has written for their query."""
    lost = made_up = 0
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, SearchFailure) or len(outcome.documents) != DOCUMENTS:
            lost += 1
            continue
        query = request(number).query
        expected = [f"About {query}: {token(secret, query, place)}." for place in range(1, DOCUMENTS + 1)]
        made_up += sum(each.text != text for each, text in zip(outcome.documents, expected, strict=True))
    return lost, made_up


def list_schedule_s(times: Sequence[float], room: int) -> float:
    """Return when the last of the jobs ends that are begun in this order, each as soon as there is room."""
    free = [0.0] * room
    for seconds in times:
        heapq.heappush(free, heapq.heappop(free) + seconds)
    return max(free)


def measure_time(count: int, room: int) -> dict[str, Any]:
    """Search on one server; return the time with its bounds."""
    secret = secrets.token_hex(16)
    with ServerProcess(secret, room) as server:
        seconds, outcomes = asyncio.run(search_all(simulator([server.url], room), count))
        times = server.served_s()
    lost, made_up = check(outcomes, secret)
    assert len(times) == count, "every search was served once"
    ideal_s, lower_s = list_schedule_s(times, room), max(max(times), sum(times) / room)
    return {
        "seconds": round(seconds, 2),
        "list_schedule_s": round(ideal_s, 2),
        "lower_bound_s": round(lower_s, 2),
        "over_list_schedule": round(seconds / ideal_s, 3),
        "over_lower_bound": round(seconds / lower_s, 3),
        "longest_latency_s": round(max(times), 2),
        "median_latency_s": round(median(times), 3),
        "lost": lost,
        "made_up": made_up,
    }


def measure_loss(count: int, room: int) -> dict[str, Any]:
    """Search on two servers and kill one when half of the searches are done; return what was lost."""
    secret = secrets.token_hex(16)
    killed_after = None
    with ServerProcess(secret, room // 2) as dies, ServerProcess(secret, room // 2) as lives:
        client = simulator([dies.url, lives.url], room // 2)

        def on_done(done: int) -> None:
            nonlocal killed_after
            if killed_after is None and done >= count // 2:
                dies.kill()
                killed_after = done

        seconds, outcomes = asyncio.run(search_all(client, count, on_done))
    lost, made_up = check(outcomes, secret)
    assert client.pool is not None
    dead = client.pool.statistics[f"{dies.url}/v1"]
    assert dead.failures, "the server that was killed had requests under way"
    return {
        "seconds": round(seconds, 2),
        "killed_after": killed_after,
        "requests_cut_off": dead.failures,
        "lost": lost,
        "made_up": made_up,
    }


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=2000)
    parser.add_argument(
        "--room", type=int, default=64, help="requests that are served at once, by all servers together"
    )
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument(
        "--serve", type=int, default=0, metavar="ROOM", help="be the server; reads its secret from stdin"
    )
    options = parser.parse_args()
    if options.serve:
        asyncio.run(SlowServer(sys.stdin.readline().strip(), options.serve).run())
        return
    load = os.getloadavg()[0]
    timed = [measure_time(options.searches, options.room) for _ in range(options.runs)]
    killed = measure_loss(options.searches, options.room)
    assert not any(each["lost"] or each["made_up"] for each in [*timed, killed]), (timed, killed)
    print(
        json.dumps(
            {
                "name": "search",
                "ratio": median(each["over_list_schedule"] for each in timed),
                "parts": {
                    "searches": options.searches,
                    "documents_per_search": DOCUMENTS,
                    "room": options.room,
                    "one_server": timed,
                    "one_of_two_servers_killed": killed,
                },
                "machine": {
                    "platform": platform.platform(),
                    "cpus": len(os.sched_getaffinity(0)),
                    "load_before": round(load, 2),
                    "niceness": os.nice(0),
                },
                "versions": {name: metadata.version(name) for name in ("aiohttp", "numpy")}
                | {"python": platform.python_version()},
                "runs": options.runs,
            }
        )
    )


if __name__ == "__main__":
    main()
