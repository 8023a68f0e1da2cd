"""The tokenizer with less around it gives what the one inside gives."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from zs_nemo.search.text_generators import encode_prompt
from zs_nemo.types.completion import ChatMessage
from zs_nemo.weights.tokenizer import HfTokenizer

TEXTS = ["a river", "", "river river a unknown", "a " * 50]


@pytest.fixture
def wrapped() -> PreTrainedTokenizerFast:
    vocabulary = {"[UNK]": 0, "[BOS]": 1, "[EOS]": 2, "a": 3, "river": 4}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 1)])
    backend.enable_truncation(max_length=3)
    backend.enable_padding(length=6)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[EOS]", unk_token="[UNK]")


@pytest.mark.parametrize("special", [False, True])
def test_ids_are_those_of_hugging_face_whatever_the_file_says_of_cutting_and_padding(wrapped, special):
    expected = [wrapped.encode(text, add_special_tokens=special) for text in TEXTS]
    wrapped.backend_tokenizer.enable_truncation(max_length=3)
    wrapped.backend_tokenizer.enable_padding(length=6)
    tokenizer = HfTokenizer(wrapped)
    assert [tokenizer.encode(text, add_special_tokens=special) for text in TEXTS] == expected
    assert len(expected[3]) == 50 + special


def test_texts_and_the_end_of_text_come_from_hugging_face(wrapped):
    tokenizer = HfTokenizer(wrapped)
    assert tokenizer.decode([3, 4, 2], skip_special_tokens=True) == wrapped.decode([3, 4, 2], skip_special_tokens=True)
    assert tokenizer.eos_token_id == 2


def test_a_chat_is_written_out_by_the_template_of_the_model(wrapped):
    chat = (ChatMessage(role="user", content="a river"),)
    with pytest.raises(ValueError, match="no chat template"):
        encode_prompt(chat, HfTokenizer(wrapped))
    wrapped.chat_template = "{% for message in messages %}{{ message.content }} a{% endfor %}"
    assert encode_prompt(chat, HfTokenizer(wrapped)) == [3, 4, 3]


class Slow:
    """A tokenizer without a backend."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [len(text), int(add_special_tokens)]


def test_a_tokenizer_without_a_backend_is_asked_as_it_is():
    assert HfTokenizer(Slow()).encode("abc", add_special_tokens=False) == [3, 0]
