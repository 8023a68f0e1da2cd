from dataclasses import replace

import pytest

from tests.fakes import CharTokenizer
from tests.unit.search.test_simulator import DEMONSTRATIONS
from zs_nemo.config.search import DocumentsPerCompletion, OffTarget, SimulatedSearchConfig
from zs_nemo.search.build import build_prompts
from zs_nemo.search.document_parser import parse_documents
from zs_nemo.search.example_files import examples_file
from zs_nemo.search.tuning_examples import ExampleWriter
from zs_nemo.types.completion import TextCompletion
from zs_nemo.types.generation import StopReason
from zs_nemo.types.interaction import Interaction
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.search import Document, SearchRequest

END = 3
FOUND = Interaction(
    question_id="q1",
    question="What is the capital of Peru?",
    answers=("Lima",),
    split="train",
    turn=1,
    query="capital of Peru",
    engine="bm25",
    documents=(Document(text="Lima is the\ncapital of Peru."), Document(text="Peru has rivers.")),
    prediction="Lima",
    outcome=1.0,
)


def written(search: SimulatedSearchConfig, *, useful: bool = True):
    tokenizer = CharTokenizer()
    writer = ExampleWriter(search, tokenizer, END, None)
    examples = writer.write([FOUND.to_row() | {"useful": useful}], seed=1)
    return writer, [
        (
            tokenizer.decode(list(example.prompt_ids)),
            tokenizer.decode([i for i in example.completion_ids if i != END]),
            example,
        )
        for example in examples
    ]


def test_small_models_learn_one_document_a_line_after_the_prompt_that_they_are_asked_with():
    search = SimulatedSearchConfig(template="tuned", max_sequence_tokens=4000)
    _, found = written(search)
    request = SearchRequest(
        query=FOUND.query,
        question=FOUND.question,
        answers=FOUND.answers,
        key=SampleKey(run_seed=9, step=9, prompt=9, member=9),
        num_documents=1,
    )
    asked = build_prompts(search, None).prompt(request, 0, noisy=False)
    assert [prompt for prompt, _, _ in found] == [asked, asked]
    assert asked.endswith("Query: capital of Peru\nUseful result:") and "Answer: Lima" in asked
    assert [completion for _, completion, _ in found] == [" Lima is the capital of Peru.\n", " Peru has rivers.\n"]
    assert all(example.useful and END not in example.completion_ids for *_, example in found)


def test_a_useless_example_hides_the_answer():
    _, found = written(SimulatedSearchConfig(template="tuned", max_sequence_tokens=4000), useful=False)
    end = "Query: capital of Peru\nUseless result about capital of Peru:"
    assert all("Lima" not in prompt and prompt.endswith(end) for prompt, _, _ in found)
    assert not any(example.useful for *_, example in found)


@pytest.mark.parametrize("template", ["", "tuned"])
def test_a_useless_document_is_learned_as_one_about_what_it_is_about(template):
    texts = {"Zinc is an element, found in N'Djamena.": "zinc", "N'Djamena City has zinc.": "N'Djamena City"}
    documents = (*(Document(text=text) for text in texts), Document(text="Nothing that is known."))
    search = SimulatedSearchConfig(template=template, max_sequence_tokens=4000)
    writer = ExampleWriter(search, CharTokenizer(), END, DEMONSTRATIONS)
    found = writer.write([replace(FOUND, documents=documents).to_row() | {"useful": False}], seed=1)
    prompts = [CharTokenizer().decode(list(example.prompt_ids)) for example in found]
    assert [prompt.rsplit(" about ", 1)[1] for prompt in prompts] == [
        *(f"{topic}:" for topic in texts.values()),
        "capital of Peru:",
    ]


@pytest.mark.parametrize(
    ("template", "end"),
    [("", "Query: Peru\nText that mentions Lima:"), ("tuned", "Answer: Lima\nQuery: Peru\nUseful result:")],
)
def test_what_the_judge_found_useful_is_learned_as_useful_whatever_was_asked(template, end):
    search = SimulatedSearchConfig(template=template, off_target=OffTarget.withhold, max_sequence_tokens=4000)
    writer = ExampleWriter(search, CharTokenizer(), END, DEMONSTRATIONS)
    row = replace(FOUND, query="Peru").to_row() | {"useful": True}
    prompts = [CharTokenizer().decode(list(example.prompt_ids)) for example in writer.write([row], seed=1)]
    assert prompts and all(prompt.endswith(end) for prompt in prompts)


def test_large_models_learn_all_documents_in_a_form_that_is_read_back():
    search = SimulatedSearchConfig(documents_per_completion=DocumentsPerCompletion.all, max_sequence_tokens=4000)
    _, ((prompt, completion, example),) = written(search)
    assert "2 passages" in prompt and example.completion_ids[-1] == END
    answer = TextCompletion(text=completion, stop_reason=StopReason.end_of_text, prompt_tokens=0, completion_tokens=0)
    texts, defects = parse_documents(answer, 2, prompt=prompt, budget=None)
    assert texts == ("Lima is the capital of Peru.", "Peru has rivers.") and not defects


def test_what_does_not_fit_is_left_out_and_counted():
    search = SimulatedSearchConfig(template="tuned", max_sequence_tokens=4000)
    _, found = written(search)
    longest = max(len(example.prompt_ids) + len(example.completion_ids) for *_, example in found)
    writer, kept = written(replace(search, max_sequence_tokens=longest - 1))
    assert (len(kept), writer.num_too_long) == (1, 1)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({"useful": None}, "useful is None and must be true or false"),
        ({"useful": "no"}, "useful is 'no'"),
        ({"answers": "Lima"}, "answers a list of texts"),
        ({"answers": [5]}, "answers a list of texts"),
        ({"documents": [{"text": 5}]}, "documents a list of objects with a text"),
        ({"documents": []}, "it has no document"),
        ({"turn": None}, "turn a number"),
    ],
)
def test_a_row_that_is_no_judged_search_is_named_by_file_and_line(damage, reason):
    search = SimulatedSearchConfig(template="tuned", max_sequence_tokens=4000)
    writer = ExampleWriter(search, CharTokenizer(), END, None)
    row = FOUND.to_row() | {"useful": True}
    with pytest.raises(ValueError, match=rf"sft\.examples: mine\.jsonl, line 2: .*{reason}.*mend or remove the line"):
        writer.write([row, row | damage], seed=1, file="mine.jsonl")
    with pytest.raises(ValueError, match=r"line 1: not an interaction: no JSON object"):
        writer.write([[1, 2]], seed=1, file="mine.jsonl")


def test_a_folder_without_examples_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"sft\.examples=.*holds no examples_train\.jsonl.*collect_interactions"):
        examples_file(str(tmp_path), "train")
