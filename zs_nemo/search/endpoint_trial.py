"""Whether endpoints can be used, found by one short completion of each before anything expensive starts."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from zs_nemo.config.endpoints import version_url
from zs_nemo.search.completion_form import CompletionForm
from zs_nemo.search.endpoint_health import HEALTH_TIMEOUT_S, error_text, exchange, open_session
from zs_nemo.types.generation import SamplingParams
from zs_nemo.types.keys import SampleKey

TRIAL_PROMPT = "Say hello."
TRIAL_TOKENS = 16
"""Of a completion at most. Some models refuse to be given less."""
_SEED = SampleKey(run_seed=0, step=0, prompt=0, member=0).seed("trial")
_PAUSE_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What every endpoint is asked: what the run will ask it, but for the prompt and the length."""

    form: CompletionForm
    sampling: SamplingParams
    timeout_s: float
    """Time for it; one that is busy (429, or 503 with Retry-After) is asked again within it."""

    @property
    def body(self) -> bytes:
        """The body of the request."""
        sampling = replace(self.sampling, max_tokens=min(self.sampling.max_tokens, TRIAL_TOKENS))
        return json.dumps(self.form.body(TRIAL_PROMPT, sampling, _SEED)).encode()


def check_served(addresses: Sequence[str], trial: Trial, api_key: str = "", *, setting: str) -> dict[str, str]:
    """Return what is wrong with each endpoint that cannot be used, {} if all can be. ``setting`` is where they stand.

    Raises ``ValueError`` naming all of them with their errors if none can be used. Not for a running event loop.
    """
    errors = asyncio.run(_errors_of_all([version_url(address) for address in addresses], trial, api_key))
    wrong = {url: error for url, error in errors.items() if error}
    if len(wrong) == len(errors):
        listed = "; ".join(f"{url}: {error}" for url, error in wrong.items())
        raise ValueError(
            f"{setting}: none of {len(errors)} can be used ({listed}); start the servers, or mend "
            f"{setting} and {setting.rpartition('.')[0]}.served_model"
        )
    return wrong


async def _errors_of_all(urls: list[str], trial: Trial, api_key: str) -> dict[str, str]:
    async with open_session(api_key) as session:
        errors = await asyncio.gather(*(_error_of(session, url, trial, api_key) for url in urls))
    return dict(zip(urls, errors, strict=True))


async def _error_of(session: aiohttp.ClientSession, url: str, trial: Trial, api_key: str) -> str:
    """Ask for the list of models, which not every server has, and if the model may be there for a completion."""
    listed = await exchange(session, url + "/models", HEALTH_TIMEOUT_S, api_key)
    if listed.error:
        return listed.error
    served = _model_names(listed.text) if listed.status == 200 else []
    # Some list "models/NAME" and are asked for "NAME"; whether that is so, the completion tells.
    if served and not any(f"/{name}".endswith(f"/{trial.form.model}") for name in served):
        return f"it serves {', '.join(served[:10])}, and not {trial.form.model!r}"
    error = await _error_of_completion(session, url + trial.form.path, trial, api_key)
    return error and f"a completion of {TRIAL_TOKENS} tokens fails: {error}"


async def _error_of_completion(session: aiohttp.ClientSession, address: str, trial: Trial, api_key: str) -> str:
    clock = asyncio.get_running_loop().time
    give_up_at = clock() + trial.timeout_s
    while True:
        reply = await exchange(session, address, max(give_up_at - clock(), 0.0), api_key, body=trial.body)
        if reply.error:
            return reply.error
        is_busy = reply.status == 429 or (reply.status == 503 and reply.rest_s is not None)
        rest_s = max(reply.rest_s or 0.0, _PAUSE_S)
        if not is_busy or clock() + rest_s >= give_up_at:
            break
        await asyncio.sleep(rest_s)
    if reply.status != 200:
        return error_text(reply.status, reply.text, api_key)
    try:
        trial.form.read(json.loads(reply.text))
    except (ValueError, RecursionError) as error:
        reason = "it is no JSON" if isinstance(error, json.JSONDecodeError) else str(error)
        return f"the answer cannot be used: {reason}"
    return ""


def _model_names(text: str) -> list[str]:
    try:
        answer: Any = json.loads(text)
    except ValueError:
        return []
    rows = answer.get("data") if isinstance(answer, dict) else None
    rows = rows if isinstance(rows, list) else []
    return [row["id"] for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]
