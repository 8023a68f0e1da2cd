"""Whether endpoints are told apart that serve the model and that do not."""

import asyncio
import json

import pytest
from aiohttp import web

from tests.loopback import serving
from zs_nemo.search import endpoint_health
from zs_nemo.search.endpoint_health import check_served

LISTED = json.dumps({"data": [{"id": f"model-{number}"} for number in range(2000)]}).encode()


def app() -> web.Application:
    """Answer with the list of models in two parts, the second one a moment later."""

    async def models(asked: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(asked)
        await response.write(LISTED[:100])
        await asyncio.sleep(0.05)
        await response.write(LISTED[100:])
        return response

    made = web.Application()
    made.add_routes([web.get("/v1/models", models)])
    return made


def test_the_list_of_models_is_read_to_its_end_however_it_comes() -> None:
    with serving(app) as url:
        assert check_served([url], "model-1999") == {}
        with pytest.raises(ValueError, match=r"it serves model-0, model-1, .* and not 'another'"):
            check_served([url], "another")


def test_a_list_without_an_end_is_read_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_health, "_MAX_BYTES", 50)
    with serving(app) as url:
        assert check_served([url], "another") == {}, "what is listed is not known"
