"""How a policy is given its prompt: as text that it goes on from, or as a user's message in its chat template."""

from dataclasses import dataclass

from zs_nemo.config.endpoints import ApiKind
from zs_nemo.search.text_generators import encode_prompt
from zs_nemo.types.completion import ChatMessage
from zs_nemo.types.generation import Tokenizer


@dataclass(frozen=True, kw_only=True)
class PromptForm:
    """How prompts reach the policy."""

    api: ApiKind = ApiKind.completions
    may_open: bool = True
    """Whether the policy can be made to go on in text that stands there already; a chat server begins its own message,
    and puts the prompt into the template itself."""

    def check(self, tokenizer: Tokenizer) -> None:
        """Raise ``ValueError`` for a chat with a tokenizer that has no template for it."""
        if self._writes_chat and not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "api=chat, but the policy's tokenizer has no chat template; set api=completions, or take an "
                "instruction-tuned model"
            )

    def encode(self, prompt: str, tokenizer: Tokenizer, *, opened: str = "") -> list[int]:
        """Return the token ids that an episode starts with, special tokens such as Llama's at the beginning included.

        ``opened`` is what the policy finds as its own beginning.
        """
        opened = opened if self.may_open else ""
        if not self._writes_chat:
            return encode_prompt(prompt + opened, tokenizer)
        ids = encode_prompt((ChatMessage(role="user", content=prompt.rstrip("\n")),), tokenizer)
        return ids + tokenizer.encode(opened, add_special_tokens=False) if opened else ids

    @property
    def _writes_chat(self) -> bool:
        return self.api is ApiKind.chat and self.may_open
