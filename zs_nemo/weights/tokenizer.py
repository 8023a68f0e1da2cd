"""A Hugging Face tokenizer with less around it: an episode encodes a few lines a turn, and there may be thousands."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class HfTokenizer:
    """Implements ``Tokenizer``. Gives the ids of the tokenizer that it wraps."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        # Half of the time of a short text goes into records that nobody here reads; a tokenizer without a backend in
        # Rust is asked as it is.
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend is not None:
            # tokenizer.json may hold either, and ``PreTrainedTokenizerBase.encode`` applies neither by itself.
            self._backend.no_truncation()
            self._backend.no_padding()

    @property
    def eos_token_id(self) -> int:
        """The token that ends a text."""
        return int(self._tokenizer.eos_token_id)

    @property
    def chat_template(self) -> str | dict[str, str] | None:
        """The template of a chat, or several by name; nothing where the model is not made for chats."""
        return self._tokenizer.chat_template

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> Any:
        """Write a chat out as transformers does, with its options."""
        return self._tokenizer.apply_chat_template(messages, **options)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Turn text into token ids."""
        if self._backend is None:
            return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))
        # The fast one leaves out where in the text each token came from.
        return list(self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        """Turn token ids into text."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))
