"""Language models behind text: our own engines, and OpenAI-compatible servers (vLLM, SGLang, NIM)."""

from typing import Any

from zs_nemo.config.endpoints import ApiKind
from zs_nemo.search.endpoints import EndpointPool
from zs_nemo.types.completion import Prompt, TextCompletion
from zs_nemo.types.generation import GenerationEngine, SamplingParams, StopReason, Tokenizer
from zs_nemo.types.search import PromptTooLong


class EngineTextGenerator:
    """Our own engine with its tokenizer. Implements ``types.completion.TextGenerator``."""

    def __init__(self, engine: GenerationEngine, tokenizer: Tokenizer, *, max_sequence_tokens: int = 0) -> None:
        """``max_sequence_tokens`` is what the engine takes of prompt and completion together; 0 for any."""
        self._engine = engine
        self._tokenizer = tokenizer
        self._max_sequence_tokens = max_sequence_tokens

    async def complete(self, prompt: Prompt, sampling: SamplingParams, seed: int) -> TextCompletion:
        """Sample one completion; raise ``PromptTooLong`` where the engine has no room for it."""
        prompt_ids = encode_prompt(prompt, self._tokenizer)
        if self._max_sequence_tokens and len(prompt_ids) + sampling.max_tokens > self._max_sequence_tokens:
            raise PromptTooLong(
                f"a prompt of {len(prompt_ids)} tokens and search.max_tokens={sampling.max_tokens} are more than "
                f"search.max_sequence_tokens={self._max_sequence_tokens}; raise that"
            )
        completion = await self._engine.generate(prompt_ids, sampling, seed)
        text = completion.text
        if completion.stop_reason is StopReason.stop_string:
            # As servers do: it ends the text and is no part of it.
            text = text.removesuffix(next((stop for stop in sampling.stop if text.endswith(stop)), ""))
        return TextCompletion(
            text=text,
            stop_reason=completion.stop_reason,
            prompt_tokens=len(prompt_ids),
            completion_tokens=len(completion.token_ids),
        )


def encode_prompt(prompt: Prompt, tokenizer: Tokenizer) -> list[int]:
    """Return a prompt's token ids. A chat is written out by the tokenizer's chat template.

    Raises ``ValueError`` for a chat where the tokenizer has no template.
    """
    if isinstance(prompt, str):
        return tokenizer.encode(prompt)
    messages = [{"role": message.role, "content": message.content} for message in prompt]
    written = _chat_template(tokenizer)(messages, tokenize=False, add_generation_prompt=True)
    # The template has put the special tokens in.
    return tokenizer.encode(written, add_special_tokens=False)


def _chat_template(tokenizer: Tokenizer) -> Any:
    apply = getattr(tokenizer, "apply_chat_template", None)
    if apply is None or not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "search.api=chat, but the simulator's tokenizer has no chat template; set search.api=completions, or "
            "take an instruction-tuned model"
        )
    return apply


class EndpointTextGenerator:
    """A model that one or several servers serve. Implements ``types.completion.TextGenerator``."""

    def __init__(self, pool: EndpointPool, *, model: str, api: ApiKind) -> None:
        self._pool = pool
        self._model = model
        self._api = api

    async def complete(self, prompt: Prompt, sampling: SamplingParams, seed: int) -> TextCompletion:
        """Sample one completion on the least loaded endpoint; raise ``SearchFailure`` as ``EndpointPool.post`` does."""
        body = self._body(prompt, sampling, seed)
        path = "/chat/completions" if self._api is ApiKind.chat else "/completions"
        return await self._pool.post(path, body, self._read, seed=seed)

    def _body(self, prompt: Prompt, sampling: SamplingParams, seed: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
            "stream": False,
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if self._api is ApiKind.chat:
            messages = [("user", prompt)] if isinstance(prompt, str) else [(each.role, each.content) for each in prompt]
            return body | {"messages": [{"role": role, "content": content} for role, content in messages]}
        text = prompt if isinstance(prompt, str) else "\n\n".join(message.content for message in prompt)
        return body | {"prompt": text}

    def _read(self, answer: Any) -> TextCompletion:
        """Return the completion in an answer; raise ``ValueError`` for one that does not follow the protocol."""
        choice = _first_choice(answer)
        if self._api is ApiKind.chat:
            message = choice.get("message")
            text = message.get("content") if isinstance(message, dict) else None
            # A model that has only thought, or has been cut while it thought, has no content.
            text = "" if text is None and isinstance(message, dict) else text
        else:
            text = choice.get("text")
        if not isinstance(text, str):
            raise ValueError("the answer's first choice holds no text")
        usage = answer.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        return TextCompletion(
            text=text,
            stop_reason=_stop_reason(choice),
            prompt_tokens=_count(usage.get("prompt_tokens")),
            completion_tokens=_count(usage.get("completion_tokens")),
        )


def _first_choice(answer: Any) -> dict[str, Any]:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError("the answer has no choices")
    return choices[0]


def _stop_reason(choice: dict[str, Any]) -> StopReason:
    finish = choice.get("finish_reason")
    if finish == "length":
        return StopReason.length
    if finish not in ("stop", "eos", None):
        # Such as "abort" and "content_filter": what is there is no whole completion.
        raise ValueError(f"the server ended the completion with finish_reason={str(finish)[:40]!r}")
    # vLLM names the stop string; others do not tell it from the end of the text.
    return StopReason.stop_string if isinstance(choice.get("stop_reason"), str) else StopReason.end_of_text


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
