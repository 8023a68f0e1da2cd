"""Whether an endpoint is there and serves the model: in the background of a run, and once before anything starts."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import aiohttp

from zs_nemo.search.endpoint_state import version_url

ERROR_CHARACTERS = 300
"""Of an error's text so much is told."""
HEALTH_TIMEOUT_S = 10.0
_KEEP_ALIVE_S = 3.0
"""Idle connections are closed before the servers close them (uvicorn: 5 s), perhaps while no event loop runs here."""
_MAX_BYTES = 2**20


def open_session(api_key: str) -> aiohttp.ClientSession:
    """Return a client session that sends the key; to be closed by the caller. How many requests run is up to them."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
        timeout=aiohttp.ClientTimeout(total=None),
        headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def check_health(session: aiohttp.ClientSession, url: str, timeout_s: float, api_key: str = "") -> str:
    """Return "" for an endpoint that is well, else what is wrong.

    Asks ``/health`` beside the version, then ``/v1/models`` where a server does not know that. One that knows neither
    is there at least, and counts as well.
    """
    for address in (url.removesuffix("/v1") + "/health", url + "/models"):
        status, text, error = await _get(session, address, min(timeout_s, HEALTH_TIMEOUT_S), api_key)
        if error:
            return error
        if status not in (404, 405):
            return "" if status < 400 else error_text(status, text, api_key)
    return ""


def check_served(
    addresses: Sequence[str], model: str, api_key: str = "", *, setting: str = "search.endpoints"
) -> dict[str, str]:
    """Return what is wrong with each endpoint that cannot be used, {} if all can be. ``setting`` is where they stand.

    Raises ``ValueError`` naming all of them with their errors if none can be used. Not for a running event loop.
    """
    errors = asyncio.run(_errors_of_all([version_url(address) for address in addresses], model, api_key))
    wrong = {url: error for url, error in errors.items() if error}
    if len(wrong) == len(errors):
        listed = "; ".join(f"{url}: {error}" for url, error in wrong.items())
        raise ValueError(
            f"{setting}: none of {len(errors)} can be used ({listed}); start the servers, or mend "
            f"{setting} and {setting.rpartition('.')[0]}.served_model"
        )
    return wrong


def error_text(status: int, body: str, api_key: str) -> str:
    """Return an HTTP error as one line, without the key, should the server repeat it."""
    # Redacted before it is cut: half a key is still a secret.
    text = " ".join((body.replace(api_key, "***") if api_key else body).split())[:ERROR_CHARACTERS]
    return f"HTTP {status}" + (f": {text}" if text else "")


async def _errors_of_all(urls: list[str], model: str, api_key: str) -> dict[str, str]:
    async with open_session(api_key) as session:
        errors = await asyncio.gather(*(_error_of(session, url, model, api_key) for url in urls))
    return dict(zip(urls, errors, strict=True))


async def _error_of(session: aiohttp.ClientSession, url: str, model: str, api_key: str) -> str:
    status, text, error = await _get(session, url + "/models", HEALTH_TIMEOUT_S, api_key)
    if error:
        return error
    if status in (404, 405):
        return await check_health(session, url, HEALTH_TIMEOUT_S, api_key)
    if status >= 400:
        return error_text(status, text, api_key)
    served = _model_names(text)
    if served and model not in served:
        return f"it serves {', '.join(served[:10])}, and not {model!r}"
    return ""


async def _get(session: aiohttp.ClientSession, address: str, timeout_s: float, api_key: str) -> tuple[int, str, str]:
    """Return (status, body, ""), or (0, "", what went wrong)."""
    try:
        async with asyncio.timeout(timeout_s), session.get(address, allow_redirects=False) as response:
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) >= _MAX_BYTES:
                    break
            return response.status, body[:_MAX_BYTES].decode("utf-8", errors="replace"), ""
    except TimeoutError:
        return 0, "", f"no answer within {timeout_s:g} s"
    except (aiohttp.ClientError, OSError) as error:
        text = f"{type(error).__name__}: {error}"
        return 0, "", (text.replace(api_key, "***") if api_key else text)[:ERROR_CHARACTERS]


def _model_names(text: str) -> list[str]:
    try:
        answer: Any = json.loads(text)
    except ValueError:
        return []
    rows = answer.get("data") if isinstance(answer, dict) else None
    rows = rows if isinstance(rows, list) else []
    return [row["id"] for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]
