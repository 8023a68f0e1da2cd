"""Whether an endpoint is there, as it is looked after in the background of a run, and how one is reached at all."""

import asyncio
import re
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from zs_nemo.search.http_client import asked_pause_s

ERROR_CHARACTERS = 300
"""Of an error's text so much is told."""
HEALTH_TIMEOUT_S = 10.0
_KEEP_ALIVE_S = 3.0
"""Idle connections are closed before the servers close them (uvicorn: 5 s), perhaps while no event loop runs here."""
_MAX_BYTES = 2**20
_USER_INFO = re.compile(r"(?<=://)[^/@\s]+@")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came of one request."""

    status: int = 0
    text: str = ""
    rest_s: float | None = None
    """For how long the server asks for no more; None where it does not say."""
    error: str = ""
    """Why there is no answer at all, without secrets; then the rest says nothing."""


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
        reply = await exchange(session, address, min(timeout_s, HEALTH_TIMEOUT_S), api_key)
        if reply.error:
            return reply.error
        if reply.status not in (404, 405):
            return "" if reply.status < 400 else error_text(reply.status, reply.text, api_key)
    return ""


async def exchange(
    session: aiohttp.ClientSession, address: str, timeout_s: float, api_key: str = "", *, body: bytes | None = None
) -> Reply:
    """Get what is at an address, or post ``body``, which is JSON, to it; never raises for what a server does."""
    asked = session.post if body is not None else session.get
    try:
        async with (
            asyncio.timeout(timeout_s),
            asked(
                address,
                data=body,
                headers={"Content-Type": "application/json"} if body is not None else {},
                proxy=proxy_for(address),
                allow_redirects=False,
            ) as response,
        ):
            content = bytearray()
            async for chunk in response.content.iter_any():
                content += chunk
                if len(content) >= _MAX_BYTES:
                    break
            text = content[:_MAX_BYTES].decode("utf-8", errors="replace")
            rest_s = asked_pause_s(response.headers.get("Retry-After", ""))
            return Reply(status=response.status, text=text, rest_s=rest_s)
    except TimeoutError:
        return Reply(error=f"no answer within {timeout_s:g} s")
    except (aiohttp.ClientError, OSError) as error:
        return Reply(error=redacted(f"{type(error).__name__}: {error}", api_key))


def error_text(status: int, body: str, api_key: str) -> str:
    """Return an HTTP error as one line, without the key, should the server repeat it."""
    text = redacted(body, api_key)
    return f"HTTP {status}" + (f": {text}" if text else "")


def redacted(text: str, api_key: str) -> str:
    """Return the beginning of a text on one line, without the key and without what a proxy's address holds."""
    # Before it is cut: half a key is still a secret.
    text = _USER_INFO.sub("***@", text.replace(api_key, "***") if api_key else text)
    return " ".join(text.split())[:ERROR_CHARACTERS]


def proxy_for(address: str) -> str | None:
    """Return the proxy that HTTPS_PROXY, HTTP_PROXY and NO_PROXY name for an address; never one for this machine."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    if _is_this_machine(host) or proxy_bypass(host):
        return None
    proxy = getproxies().get(parts.scheme, "")
    # As with search=web, one of another kind is passed over.
    return proxy if proxy.startswith(("http://", "https://")) else None


def _is_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
