"""Serve a search engine to other programs: Search-R1's ``/retrieve``, with noise and a curriculum added to it.

    python recipes/serve_search.py                                # BM25 over the facts world, 127.0.0.1:8000
    python recipes/serve_search.py search.corpus=wiki.jsonl       # BM25 over a corpus of your own
    python recipes/serve_search.py search=simulated server.noise.probability=0.25
    python recipes/serve_search.py search=retriever search.url=http://127.0.0.1:8001    # pass another server on
    python recipes/serve_search.py search=web server.token_variable=SEARCH_TOKEN        # the web, for who has the token

    curl -X POST http://127.0.0.1:8000/retrieve -d '{"queries": ["capital of Peru"], "topk": 3, "return_scores": true}'

A trainer written for Search-R1 names http://HOST:PORT/retrieve as its retriever's address and needs no other change.
``/health`` says what is served, ``/metrics`` is for Prometheus; Ctrl-C or SIGTERM lets requests under way end first.
"""

import sys

from omegaconf import DictConfig

from zs_nemo.config.command import command
from zs_nemo.config.registry import register
from zs_nemo.config.server import ServeSearchConfig

register()


def serve(cfg: ServeSearchConfig) -> None:
    """Serve until told to stop."""
    import asyncio
    import ipaddress
    import logging

    from zs_nemo.cluster.served_engine import served_engine, told_noise
    from zs_nemo.search.http_client import secret_from
    from zs_nemo.search.server import SearchServer, listen

    # Warnings, and the steps of the curriculum that the count of searches comes to.
    logging.basicConfig(format="%(message)s")
    logging.getLogger("zs_nemo.search.server_noise").setLevel(logging.INFO)
    token = secret_from(cfg.server.token_variable, "server.token_variable")
    with listen(cfg.server.host, cfg.server.port) as listening, served_engine(cfg) as served:
        server = SearchServer(
            served.engine,
            cfg.server,
            num_documents=cfg.search.num_documents,
            noise=served.noise,
            token=token,
            trouble=served.trouble,
        )
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"{served.engine.name} is served at http://{shown}:{port}/retrieve; Ctrl-C ends it", flush=True)
        if noise := told_noise(cfg):
            print(noise, flush=True)

        async def until_stopped() -> None:
            try:
                await server.serve(listening)
            finally:
                await served.aclose()

        if not token and not ipaddress.ip_address(host).is_loopback:
            print("warning: without server.token_variable everybody who reaches this address may search", flush=True)
        asyncio.run(until_stopped())
    print("ended", flush=True)


@command("serve_search")
def main(composed: DictConfig) -> None:
    """Compose the configuration, then serve; the heavy imports come after ``--help`` has been answered."""
    from zs_nemo.cluster.terminal import run_command

    # An interrupt before it is ready is one; once it serves, a signal is no error.
    sys.exit(run_command(composed, ServeSearchConfig, serve))


if __name__ == "__main__":
    main()
