"""Language models behind text: our own engines, and OpenAI-compatible servers (vLLM, SGLang, NIM)."""

from typing import Any

from zs_nemo.search.completion_form import CompletionForm
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

    def __init__(self, pool: EndpointPool, form: CompletionForm) -> None:
        self._pool = pool
        self._form = form

    async def complete(self, prompt: Prompt, sampling: SamplingParams, seed: int) -> TextCompletion:
        """Sample one completion on the least loaded endpoint; raise ``SearchFailure`` as ``EndpointPool.post`` does."""
        body = self._form.body(prompt, sampling, seed)
        return await self._pool.post(self._form.path, body, self._form.read, seed=seed)
