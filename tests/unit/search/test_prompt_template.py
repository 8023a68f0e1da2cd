"""Templates: what must stand in them, what may not, and what our own say."""

from pathlib import Path

import pytest

from zs_nemo.config.endpoints import ApiKind
from zs_nemo.config.search import DocumentsPerCompletion, SimulatedSearchConfig
from zs_nemo.search.build import build_prompts
from zs_nemo.search.prompt_template import REQUIRED, REQUIRED_FOR_ALL, PromptTemplate, load_template
from zs_nemo.search.simulator_prompts import answers_text
from zs_nemo.types.completion import ChatMessage
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.search import SearchRequest

ALL, ONE = DocumentsPerCompletion.all, DocumentsPerCompletion.one
EVERY_SLOT = " ".join("{{ " + slot + " }}" for slot in (*REQUIRED, *REQUIRED_FOR_ALL))
KEY = SampleKey(run_seed=1, step=2, prompt=3, member=4)


def request(
    query: str = "capital of Chad", answers: tuple[str, ...] = ("N'Djamena",), question: str = "Q?"
) -> SearchRequest:
    return SearchRequest(query=query, question=question, answers=answers, key=KEY, num_documents=5)


def instruction(noisy: bool, asked: SearchRequest | None = None, api: ApiKind = ApiKind.completions, **changes: object):
    """Return the prompt of our instruction form."""
    settings = SimulatedSearchConfig(documents_per_completion=ALL, api=api, **changes)  # type: ignore[arg-type]
    return build_prompts(settings, None).prompt(asked or request(), 0, noisy=noisy, num_documents=5)


@pytest.mark.parametrize("slot", [*REQUIRED, *REQUIRED_FOR_ALL])
def test_a_template_without_a_required_slot_is_refused_by_name(tmp_path: Path, slot: str) -> None:
    path = tmp_path / "mine.j2"
    path.write_text(EVERY_SLOT.replace("{{ " + slot + " }}", slot))
    with pytest.raises(ValueError, match=rf"mine\.j2 has no slot {slot}; put \{{\{{ {slot} \}}\}} where"):
        load_template(str(path), ALL)


def test_one_document_a_completion_needs_no_number_of_documents() -> None:
    PromptTemplate(" ".join("{{ " + slot + " }}" for slot in REQUIRED), ONE)


@pytest.mark.parametrize("slot", ["num_docs", "cue", "self_made"])
def test_an_unknown_slot_is_refused_by_name(slot: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown slot {slot}; known are answers, examples"):
        PromptTemplate(EVERY_SLOT + "{{ " + slot + " }}", ALL)


@pytest.mark.parametrize("source", ["{% if noisy %}", "{{ query", "{% nonsense %}"])
def test_a_template_that_is_no_jinja_is_refused_with_its_line(source: str) -> None:
    with pytest.raises(ValueError, match=r"search\.template: the template, line 2: .*valid Jinja"):
        PromptTemplate(f"{EVERY_SLOT}\n{source}", ALL)


def test_a_message_may_not_begin_inside_a_condition() -> None:
    source = f"{{% if noisy %}}\n{{# user #}}\n{EVERY_SLOT}\n{{% endif %}}"
    with pytest.raises(ValueError, match="a message must be whole"):
        PromptTemplate(source, ALL)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"search\.template='/nowhere/x' cannot be read \(No such file"):
        load_template("/nowhere/x", ALL)
    (tmp_path / "latin").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="no UTF-8 text"):
        load_template(str(tmp_path / "latin"), ALL)


def test_a_simulator_that_wants_its_own_wording_is_refused_without() -> None:
    with pytest.raises(ValueError, match=r"search\.template=required: .* write it into one and name it"):
        load_template("required", ALL)


def test_texts_in_slots_are_never_read_as_a_template() -> None:
    hostile = "{{ answers }}{% if noisy %}{# user #}\n"
    prompt = instruction(True, request(query=hostile, answers=("SECRET",)), ApiKind.chat)
    assert "{{ answers }}{% if noisy %}{# user #}" in prompt[-1].content and len(prompt) == 2
    assert "SECRET" not in prompt[-1].content


def test_the_instruction_form_says_how_many_documents_of_how_many_words_and_all_answers() -> None:
    asked = request(answers=("N'Djamena", "Fort-Lamy"))
    useful = instruction(False, asked, num_words=42)
    assert "the 5 passages" in useful and "about 42 words" in useful
    assert "N'Djamena or Fort-Lamy" in useful and "Q?" in useful and "capital of Chad" in useful
    noisy = instruction(True, asked, num_words=42)
    assert "the 5 passages" in noisy and "about 42 words" in noisy and "capital of Chad" in noisy
    assert "N'Djamena" not in noisy and "Fort" not in noisy and "Q?" not in noisy


def test_without_question_and_answers_the_instruction_form_asks_about_the_query() -> None:
    useful = instruction(False, request(answers=(), question=""))
    assert "capital of Chad" in useful and "wants to know" not in useful and "true" not in useful


def test_messages_are_cut_at_their_marks_and_one_text_is_one_message_of_the_user() -> None:
    system, user = instruction(False, api=ApiKind.chat)
    assert (system.role, user.role) == ("system", "user")
    assert "#}" not in system.content + user.content and "capital of Chad" in user.content
    slots = dict.fromkeys((*REQUIRED, *REQUIRED_FOR_ALL), "x")
    assert PromptTemplate(EVERY_SLOT, ALL).render(ApiKind.chat, slots) == (
        ChatMessage(role="user", content="x x x x x x"),
    )
    assert PromptTemplate(EVERY_SLOT + "\n", ALL).render(ApiKind.completions, slots) == "x x x x x x"


def test_an_empty_system_message_is_sent_and_a_number_can_be_written_out() -> None:
    source = "{# system #}\n{# user #}\n" + EVERY_SLOT + " {{ num_documents | in_words }}\n{# assistant #}\n"
    template = PromptTemplate(source, ALL)
    slots: dict[str, object] = dict.fromkeys((*REQUIRED, *REQUIRED_FOR_ALL), "x")
    five, many = (template.render(ApiKind.chat, slots | {"num_documents": number}) for number in (5, 12))
    assert not isinstance(five, str) and not isinstance(many, str)
    assert [message.role for message in five] == ["system", "user"] and five[0].content == ""
    assert five[1].content.endswith(" five") and many[1].content.endswith(" 12")


def test_a_template_of_one_s_own_is_filled(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("{{ num_documents }}/{{ num_words }} {{ noisy }} {{ query }} {{ question }} {{ answers }}")
    settings = SimulatedSearchConfig(documents_per_completion=ALL, template=str(path), num_words=7)
    prompt = build_prompts(settings, None).prompt(request(), 0, noisy=True, num_documents=3)
    assert prompt == "3/7 True capital of Chad Q? N'Djamena"


def test_the_short_form_without_the_facts_world_is_refused() -> None:
    with pytest.raises(ValueError, match=r"search\.documents_per_completion=one needs the facts world's examples"):
        build_prompts(SimulatedSearchConfig(), None)


@pytest.mark.parametrize(
    ("answers", "limit", "text"),
    [
        (("Lima",), 0, "Lima"),
        (("Lima", "Ciudad de\nlos Reyes"), 0, "Lima or Ciudad de los Reyes"),
        (("Lima", "lima", "Líma", "The Lima.", "Callao"), 0, "Lima or Callao"),
        (("a1", "b1", "c1"), 1, "a1"),
        (("a1", "b1", "c1"), 2, "a1 or b1"),
        (("?", "!"), 0, "? or !"),
    ],
)
def test_several_answers_stand_in_a_prompt_once_each(answers: tuple[str, ...], limit: int, text: str) -> None:
    assert answers_text(answers, limit) == text


def test_hundreds_of_answers_do_not_fill_the_prompt_but_the_first_is_always_whole() -> None:
    many = answers_text([f"name{number}" for number in range(1000)])
    assert many.startswith("name0 or name1 or ") and len(many) < 600
    assert answers_text(["x" * 1000, "y"]) == "x" * 1000 + " or y"


@pytest.mark.parametrize(("answers", "end"), [(("Lima", "City of Kings"), "mentions Lima:"), ((), "Text:")])
def test_the_open_form_names_the_answer_whatever_the_query_asks(answers: tuple[str, ...], end: str) -> None:
    prompts = build_prompts(SimulatedSearchConfig(template="open", max_answers=1), None)
    prompt = prompts.prompt(request("who is it", answers, "Who wrote it?"), 0, noisy=False)
    assert isinstance(prompt, str) and prompt.endswith(end)
    assert "Question: Who wrote it?\nQuery: who is it\n" in prompt
    noisy = prompts.prompt(request("who is it", answers, "Who wrote it?"), 0, noisy=True)
    assert isinstance(noisy, str) and "Lima" not in noisy
