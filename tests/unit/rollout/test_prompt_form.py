"""How an episode's first tokens come from the prompt, in the forms that models know."""

import pytest

from tests.fakes import CharTokenizer
from zs_nemo.config.endpoints import ApiKind
from zs_nemo.rollout.packing import pack_scripted
from zs_nemo.rollout.prompt_form import PromptForm
from zs_nemo.types.trajectory import Role

BEGIN = 7


class BeginningTokenizer(CharTokenizer):
    """As Llama's: every text begins with a special token, unless it says that it does not begin there."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [BEGIN] * add_special_tokens + super().encode(text)


class ChatTokenizer(BeginningTokenizer):
    chat_template = "a template"

    def apply_chat_template(
        self, messages: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        assert not tokenize and add_generation_prompt
        return f"{chr(BEGIN)}[user]{messages[0]['content']}[assistant]"


CHAT = PromptForm(api=ApiKind.chat)


def test_a_raw_prompt_begins_as_the_model_s_texts_do() -> None:
    tokenizer = BeginningTokenizer()
    ids = PromptForm().encode("Q?\n", tokenizer, opened="<answer>")
    assert (ids[0], tokenizer.decode(ids[1:])) == (BEGIN, "Q?\n<answer>")


def test_a_chat_puts_the_prompt_into_the_template_and_what_is_open_behind_it() -> None:
    tokenizer = ChatTokenizer()
    assert tokenizer.decode(CHAT.encode("Q?\n", tokenizer, opened="<answer>")) == "\x07[user]Q?[assistant]<answer>"


@pytest.mark.parametrize(("form", "prompt"), [(PromptForm(), "\x07Q?\n"), (CHAT, "\x07[user]Q?[assistant]")])
def test_a_written_episode_begins_as_a_sampled_one(form: PromptForm, prompt: str) -> None:
    episode = [("Q?\n", Role.prompt), ("<a>", Role.policy), ("d", Role.document), ("b", Role.policy)]
    batch = pack_scripted([episode], ChatTokenizer(), form)
    assert CharTokenizer().decode(batch.token_ids.tolist()) == f"{prompt}<a>db"
    assert batch.loss_mask.tolist() == [False] * len(prompt) + [True] * 3 + [False, True]


def test_a_chat_without_a_template_is_refused() -> None:
    with pytest.raises(ValueError, match="api=chat, but the policy's tokenizer has no chat template; set api=comple"):
        CHAT.check(BeginningTokenizer())
