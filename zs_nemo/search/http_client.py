"""JSON over HTTP with one endpoint: bounded, timed, patient with a server that is busy, silent about secrets.

What an exception of the HTTP library says may hold the whole URL with an API key in it, so none of them is chained to a
``SearchFailure``, and text that comes from the server is searched for the secrets before it is shown.
"""

import asyncio
import json
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, quote_plus, urlsplit

import aiohttp

from zs_nemo.types.search import SearchFailure, SearchFailureKind

MAX_QUERY_CHARACTERS = 2000
"""A longer query is cut: addresses and servers have limits, and a policy that rambles should still be answered."""
_MAX_ANSWER_BYTES = 64 * 2**20
_BUSY = (429, 503)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0
_KEEP_ALIVE_S = 4.0
"""Shorter than common servers keep an idle connection (5 s): one that they are just closing is not used again."""
_QUOTED_BYTES, _QUOTED_CHARACTERS = 2**16, 200


@dataclass(frozen=True, kw_only=True)
class _Reply:
    status: int
    retry_after: str
    body: bytes


class HttpClient:
    """One shared session. Opened by the first request of an event loop; ``aclose`` belongs into the same loop."""

    def __init__(
        self,
        name: str,
        url: str,
        *,
        timeout_s: float,
        max_concurrency: int,
        bearer_token: str = "",
        secrets: tuple[str, ...] = (),
        uses_proxy: bool = False,
    ) -> None:
        """``name`` and ``url`` are shown in failures. ``uses_proxy`` obeys HTTPS_PROXY and its like."""
        self._name = name
        self._url = url
        self._timeout_s = timeout_s
        self._max_concurrency = max_concurrency
        self._headers = {"Authorization": f"Bearer {bearer_token}"} if bearer_token else {}
        self._secrets = tuple(secret for secret in (bearer_token, *secrets) if secret)
        self._uses_proxy = uses_proxy
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # When many are told to come back, they should not do so at the same moment. Changes no result.
        self._jitter = random.Random()

    async def post(self, payload: Mapping[str, Any]) -> Any:
        """Send ``payload`` as JSON and return the parsed answer; raise ``SearchFailure``."""
        return await self._exchange("POST", json=payload)

    async def get(self, parameters: Mapping[str, str]) -> Any:
        """Ask with ``parameters`` in the query string and return the parsed answer; raise ``SearchFailure``."""
        return await self._exchange("GET", params=parameters)

    async def aclose(self) -> None:
        """Close the connections; a later request opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def failure(self, kind: SearchFailureKind, detail: str) -> SearchFailure:
        """Return a failure that names the endpoint and holds no secret."""
        return SearchFailure(kind, self._without_secrets(f"{self._name} at {shown_url(self._url)}: {detail}"))

    async def _exchange(self, method: str, **content: Any) -> Any:
        session, slots = self._connected()
        async with slots:
            give_up_at = asyncio.get_running_loop().time() + self._timeout_s
            num_tries = 0
            while True:
                reply = await self._ask(session, method, content, give_up_at)
                if reply.status not in _BUSY:
                    return self._parsed(reply)
                pause = asked_pause_s(reply.retry_after) or 0.0
                if pause < _FIRST_PAUSE_S:
                    # A server that asks for none, or for a moment that has passed by its clock, is not asked without
                    # end.
                    pause = min(_FIRST_PAUSE_S * 2**num_tries, _LONGEST_PAUSE_S)
                pause *= 1 + self._jitter.random() / 4
                if asyncio.get_running_loop().time() + pause >= give_up_at:
                    raise self.failure(
                        SearchFailureKind.unavailable,
                        f"is busy (status {reply.status}) for longer than the {self._timeout_s:g} s that a request may "
                        f"take{self._excerpt(reply.body)}",
                    )
                await asyncio.sleep(pause)
                num_tries += 1

    def _connected(self) -> tuple[aiohttp.ClientSession, asyncio.Semaphore]:
        loop = asyncio.get_running_loop()
        if self._session is None or self._loop is not loop:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._max_concurrency, keepalive_timeout=_KEEP_ALIVE_S),
                timeout=aiohttp.ClientTimeout(total=None),
                headers=self._headers,
                trust_env=self._uses_proxy,
            )
            self._slots = asyncio.Semaphore(self._max_concurrency)
            self._loop = loop
        return self._session, self._slots

    async def _ask(
        self, session: aiohttp.ClientSession, method: str, content: Mapping[str, Any], give_up_at: float
    ) -> _Reply:
        try:
            async with asyncio.timeout_at(give_up_at):
                return await self._send(session, method, content)
        except TimeoutError:
            kind, why = SearchFailureKind.timeout, f"no answer within {self._timeout_s:g} s"
        except aiohttp.ClientError as error:
            kind, why = SearchFailureKind.unavailable, _reason(error)
        except _AnswerTooLong:
            kind, why = SearchFailureKind.invalid, f"answers with more than {_MAX_ANSWER_BYTES // 2**20} MiB"
        # Not inside the handlers: there the library's exception, which holds the URL, would hang on ours.
        raise self.failure(kind, why)

    async def _send(self, session: aiohttp.ClientSession, method: str, content: Mapping[str, Any]) -> _Reply:
        try:
            return await self._send_once(session, method, content)
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            # The server had closed a connection that was kept open. Looking something up twice does no harm.
            return await self._send_once(session, method, content)

    async def _send_once(self, session: aiohttp.ClientSession, method: str, content: Mapping[str, Any]) -> _Reply:
        # A redirect would take the credentials to an address that nobody configured.
        async with session.request(method, self._url, allow_redirects=False, **content) as response:
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > _MAX_ANSWER_BYTES:
                    raise _AnswerTooLong
            return _Reply(status=response.status, retry_after=response.headers.get("Retry-After", ""), body=bytes(body))

    def _parsed(self, reply: _Reply) -> Any:
        status, kind = reply.status, SearchFailureKind.invalid
        if 300 <= status < 400:
            raise self.failure(kind, f"redirects (status {status}); name the final address")
        if status >= 500:
            kind = SearchFailureKind.unavailable
        if status != 200:
            raise self.failure(kind, f"answered with status {status}{self._excerpt(reply.body)}")
        try:
            return json.loads(reply.body)
        except (ValueError, RecursionError):
            pass
        raise self.failure(kind, f"answered with something that is no JSON{self._excerpt(reply.body)}")

    def quoted(self, text: str) -> str:
        """Return the beginning of a text that the server wrote, on one line and without secrets."""
        # Before it is cut: half a secret would not be found any more.
        return " ".join(self._without_secrets(text).split())[:_QUOTED_CHARACTERS]

    def _excerpt(self, body: bytes) -> str:
        text = self.quoted(body[:_QUOTED_BYTES].decode(errors="replace"))
        return f": {text}" if text else ""

    def _without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            for form in {secret, quote(secret), quote(secret, safe=""), quote_plus(secret)}:
                text = text.replace(form, "***")
        return text


class _AnswerTooLong(Exception):  # noqa: N818  (caught where it is raised)
    pass


def shown_url(url: str) -> str:
    """Return ``url`` without user, parameters and fragment, fit for a message."""
    address = urlsplit(url)
    return f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}"


def clean_query(query: str) -> str:
    """Return a query that can be sent: valid Unicode, one line, not too long. May be empty."""
    text = query.encode("utf-8", "replace").decode("utf-8")
    return " ".join(text.split())[:MAX_QUERY_CHARACTERS]


def secret_from(variable: str, setting: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the secret in an environment variable; raise ``ValueError`` naming setting and variable without it.

    An empty name gives an empty secret: none is wanted.
    """
    if not variable:
        return ""
    secret = environment.get(variable, "").strip()
    if not secret:
        raise ValueError(
            f"{setting}={variable}, but the environment variable {variable} is not set; export it before the start"
        )
    if not secret.isascii() or not secret.isprintable() or " " in secret:
        raise ValueError(f"{setting}={variable}: the secret in it has white space or other than ASCII; mend it")
    return secret


def asked_pause_s(retry_after: str) -> float | None:
    """Return the seconds that a Retry-After header names, as a number or as a date; None without a readable one."""
    if retry_after.isascii() and retry_after.strip().isdigit():
        return float(retry_after)  # Of any length: what is too large for a number is infinite.
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _reason(error: aiohttp.ClientError) -> str:
    """Say why in words that hold no address: the system's text, else the kind of error."""
    system = getattr(error, "os_error", error)
    number, text = getattr(system, "errno", None), getattr(system, "strerror", None)
    # asyncio has a text of its own in place of the system's; errors of name resolution have negative numbers.
    return os.strerror(number) if number and number > 0 else str(text or type(error).__name__)
