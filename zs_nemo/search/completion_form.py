"""How a server of OpenAI's protocol is asked for a completion, and what its answer says."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zs_nemo.config.endpoints import FIELDS_WE_SET, ApiKind
from zs_nemo.types.completion import Prompt, TextCompletion
from zs_nemo.types.generation import SamplingParams, StopReason


@dataclass(frozen=True, kw_only=True)
class CompletionForm:
    """The form of all requests for one model."""

    model: str
    api: ApiKind
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of every request; none of ``FIELDS_WE_SET``."""

    @property
    def path(self) -> str:
        """What stands behind the version in the address."""
        return "/chat/completions" if self.api is ApiKind.chat else "/completions"

    def body(self, prompt: Prompt, sampling: SamplingParams, seed: int) -> dict[str, Any]:
        """Return the body of a request."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
            "stream": False,
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if self.api is ApiKind.chat:
            messages = [("user", prompt)] if isinstance(prompt, str) else [(each.role, each.content) for each in prompt]
            body["messages"] = [{"role": role, "content": content} for role, content in messages]
        else:
            body["prompt"] = prompt if isinstance(prompt, str) else "\n\n".join(message.content for message in prompt)
        assert body.keys() <= FIELDS_WE_SET
        return body | dict(self.extra_body)

    def read(self, answer: Any) -> TextCompletion:
        """Return the completion in an answer; raise ``ValueError`` for one that does not follow the protocol."""
        choice = _first_choice(answer)
        reason = _stop_reason(choice)
        usage = answer.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        return TextCompletion(
            # What a filter has left is no whole completion, whether the server sends it or not.
            text="" if reason is StopReason.filtered else self._text(choice),
            stop_reason=reason,
            prompt_tokens=_count(usage.get("prompt_tokens")),
            completion_tokens=_count(usage.get("completion_tokens")),
        )

    def _text(self, choice: dict[str, Any]) -> str:
        if self.api is ApiKind.chat:
            message = choice.get("message")
            text = message.get("content") if isinstance(message, dict) else None
            # A model that has only thought, or has been cut while it thought, has no content.
            text = "" if text is None and isinstance(message, dict) else text
        else:
            text = choice.get("text")
        if not isinstance(text, str):
            raise ValueError("the answer's first choice holds no text")
        return text


def _first_choice(answer: Any) -> dict[str, Any]:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError("the answer has no choices")
    return choices[0]


def _stop_reason(choice: dict[str, Any]) -> StopReason:
    finish = choice.get("finish_reason")
    if finish == "length":
        return StopReason.length
    if finish == "content_filter":
        return StopReason.filtered
    if finish not in ("stop", "eos", None):
        # Such as "abort": what is there is no whole completion.
        raise ValueError(f"the server ended the completion with finish_reason={str(finish)[:40]!r}")
    # vLLM names the stop string; others do not tell it from the end of the text.
    return StopReason.stop_string if isinstance(choice.get("stop_reason"), str) else StopReason.end_of_text


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
