"""The BM25 engine over small corpora."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from recipes.build_index import main as build_index_recipe
from zs_nemo.search.bm25 import Bm25Search, build_index, check_corpus, needs_all_scripts, query_tokens, tokens
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.search import SearchRequest

KEY = SampleKey(run_seed=1, step=0, prompt=0, member=0)
DOCUMENTS = {
    "a": "Paris is the capital city of France.",
    "b": "Lyon is a city in France.",
    "c": "Indium has the chemical symbol In.",
    "d": "Iodine has the chemical symbol I.",
    "e": "Brasília is the capital city of Brazil.",
    "f": "Brasília is the capital city of Brazil.",
}


def request(query: str, num_documents: int = 1) -> SearchRequest:
    return SearchRequest(query=query, question="?", answers=("x",), key=KEY, num_documents=num_documents)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    lines = (json.dumps({"id": name, "contents": text}, ensure_ascii=False) for name, text in DOCUMENTS.items())
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_the_best_document_comes_first_with_its_identifier_and_score(corpus: Path, tmp_path: Path) -> None:
    result = asyncio.run(Bm25Search(corpus, tmp_path).search(request("What is the capital of France?", 2)))
    assert [document.id for document in result.documents] == ["a", "b"]
    assert result.documents[0].text == DOCUMENTS["a"]
    assert result.documents[0].score > result.documents[1].score > 0
    assert (result.source, result.noisy, result.prompt_tokens) == ("bm25", False, 0)


def test_equal_scores_keep_the_order_of_the_corpus(corpus: Path, tmp_path: Path) -> None:
    engine = Bm25Search(corpus, tmp_path)
    assert [document.id for document in engine.lookup("brasilia", 1)] == ["e"]
    assert [document.id for document in engine.lookup("brasilia", 6)] == ["e", "f"]


def test_symbols_that_look_like_stop_words_can_be_found(corpus: Path, tmp_path: Path) -> None:
    engine = Bm25Search(corpus, tmp_path)
    assert engine.lookup("Which element has the symbol In?", 1)[0].id == "c"
    assert engine.lookup("element with the symbol I", 1)[0].id == "d"


def test_the_index_on_disk_gives_the_same_results(corpus: Path, tmp_path: Path) -> None:
    fresh = Bm25Search(corpus, tmp_path).lookup("capital city", 3)
    folders = list(tmp_path.glob("bm25-*"))
    assert len(folders) == 1
    assert Bm25Search(corpus, tmp_path).lookup("capital city", 3) == fresh
    corpus.write_text(json.dumps({"id": "z", "contents": "A city of another corpus."}) + "\n", encoding="utf-8")
    assert Bm25Search(corpus, tmp_path).lookup("capital city", 3)[0].id == "z"
    assert len(list(tmp_path.glob("bm25-*"))) == 2


def test_the_same_lines_cut_into_other_documents_have_an_index_of_their_own(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    lines = ['"Lima"', "the capital of Peru", '"Quito"', "the capital of Ecuador"]
    for path, texts in ((whole, ["\n".join(lines[:2]), "\n".join(lines[2:])]), (parts, lines)):
        rows = (json.dumps({"id": str(number), "contents": text}) for number, text in enumerate(texts))
        path.write_text("\n".join(rows) + "\n")
    Bm25Search(whole, tmp_path)
    assert Bm25Search(parts, tmp_path).lookup("capital of Ecuador", 1)[0].text == lines[3]
    assert Bm25Search(whole, tmp_path).lookup("capital of Ecuador", 1)[0].text == "\n".join(lines[2:])


@pytest.mark.parametrize("query", ["zzzz qqqq", "", "?!", "\u4e2d\u6587"])
def test_a_query_that_shares_no_word_with_the_corpus_finds_nothing(corpus: Path, tmp_path: Path, query: str) -> None:
    assert asyncio.run(Bm25Search(corpus, tmp_path).search(request(query))).documents == ()


@pytest.mark.parametrize(
    "line",
    ["not json", "[]", '"text"', '{"id": "x"}', '{"id": 1, "contents": "x"}', '{"id": "x", "contents": " "}', ""],
)
def test_an_unreadable_line_is_named_by_file_and_number(corpus: Path, tmp_path: Path, line: str) -> None:
    corpus.write_text(json.dumps({"id": "a", "contents": "fine"}) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"corpus\.jsonl, line 2: must be a JSON object"):
        Bm25Search(corpus, tmp_path)


def test_bytes_that_are_no_text_are_named_too(corpus: Path, tmp_path: Path) -> None:
    corpus.write_bytes(b'{"id": "a", "contents": "\xff\xfe"}\n')
    with pytest.raises(ValueError, match="line 1"):
        Bm25Search(corpus, tmp_path)


def test_a_missing_or_empty_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no file"):
        Bm25Search(tmp_path / "none.jsonl", tmp_path)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="holds no document"):
        Bm25Search(tmp_path / "empty.jsonl", tmp_path)


def test_terms_are_folded_alike_in_queries_and_documents() -> None:
    assert tokens("Cities; 1,234,567 São Tomé's") == ["city", "1234567", "sao", "tome"]
    assert tokens("discovered discoverer discovery located") == ["discover", "discover", "discover", "locat"]
    assert query_tokens("What is the capital of France?") == ["capital", "france"]
    assert query_tokens("what is it") == ["what", "is", "it"]


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("Москва - столица России", ["москва", "столица", "россии"]),
        ("Η Αθήνα", ["η", "αθηνα"]),
        ("القاهرة", ["القاهرة"]),
        ("दिल्ली राजधानी", ["दिलली", "राजधानी"]),
        ("北京是首都。2008年", ["北", "京", "是", "首", "都", "2008", "年"]),
        ("서울은 수도", ["서", "울", "은", "수", "도"]),
        ("東京タワー・TV", ["東", "京", "タ", "ワ", "ー", "tv"]),
    ],
)
def test_words_of_other_scripts_are_terms_and_characters_where_no_space_parts_words(
    text: str, terms: list[str]
) -> None:
    assert tokens(text, all_scripts=True) == terms
    assert not set(tokens(text)) - {"2008", "tv"}


def test_latin_letters_without_a_decomposition_are_folded_with_all_scripts_alone() -> None:
    assert tokens("Łódź, Straße; Ørsted's Nukuʻalofa", all_scripts=True) == [
        "lodz",
        "strasse",
        "orst",
        "nuku",
        "alofa",
    ]
    assert tokens("Łódź, Straße") == ["odz", "stra", "e"], "what published results rest on"


def test_all_scripts_count_in_a_corpus_with_more_than_some_foreign_names() -> None:
    english = ["Brasília is the capital city of Brazil."] * 200
    assert not needs_all_scripts([*english, "Saatlı is a town."])
    assert needs_all_scripts([*english, "北京是中国的首都"])
    assert needs_all_scripts(["Die Straße nach Gießen ist lang und gerade."])


def test_a_document_in_another_script_is_found(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    texts = ["巴黎是法国的首都", "北京是中国的首都", "Лима - столица Перу", "?!"]
    rows = (json.dumps({"id": str(number), "contents": text}) for number, text in enumerate(texts))
    path.write_text("\n".join(rows) + "\n")
    engine = Bm25Search(path, tmp_path)
    assert [document.id for document in engine.lookup("中国首都在哪里?", 2)] == ["1", "0"]
    assert [document.id for document in engine.lookup("столица Перу", 2)] == ["2"]


def test_a_corpus_without_a_word_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(json.dumps({"id": "a", "contents": "?!"}) + "\n")
    with pytest.raises(ValueError, match=r"search\.corpus: none of its 1 documents holds a letter or a digit"):
        Bm25Search(path, tmp_path)
    assert not list(tmp_path.glob("*bm25-*"))


def test_the_first_line_of_a_corpus_tells_whether_it_can_be_one(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    with pytest.raises(ValueError, match="is no file"):
        check_corpus(path)
    path.write_text("")
    with pytest.raises(ValueError, match="holds no document"):
        check_corpus(path)
    path.write_text('{"id": 1}\n')
    with pytest.raises(ValueError, match=r"line 1: must be a JSON object"):
        check_corpus(path)
    path.write_text('{"id": "a", "contents": "Lima"}\nno JSON')
    check_corpus(path)


def test_whoever_waits_for_an_index_is_told_of_it_once(corpus: Path, tmp_path: Path) -> None:
    told: list[int] = []
    for _ in range(2):
        Bm25Search(corpus, tmp_path, on_building=told.append)
    assert told == [6]


def test_an_index_built_beforehand_is_the_one_that_is_searched_and_is_built_once(corpus: Path, tmp_path: Path) -> None:
    stages: list[tuple[str, int, int]] = []
    built = build_index(corpus, tmp_path, lambda *progress: stages.append(progress))
    assert built.is_new and built.num_documents == 6 and built.folder.parent == tmp_path
    assert stages[-1] == ("indexing", 1, 1) and ("splitting into terms", 6, 6) in stages
    written = {path: path.stat().st_mtime_ns for path in built.folder.iterdir()}
    assert build_index(corpus, tmp_path) == replace(built, is_new=False)
    Bm25Search(corpus, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in built.folder.iterdir()} == written
    assert list(tmp_path.glob("*bm25-*")) == [built.folder], "nothing else is left behind"


def test_the_recipe_prints_where_the_index_lies_and_refuses_a_bad_line_by_number(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build_index_recipe([str(corpus), "--cache", str(tmp_path)]) == 0
    (folder,) = tmp_path.glob("bm25-*")
    assert capsys.readouterr().out == f"6 documents, built: {folder}\n"
    assert build_index_recipe([str(corpus), "--cache", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"6 documents, was there already: {folder}\n"
    corpus.write_text(corpus.read_text() + '{"id": 7, "contents": "x"}\n')
    assert build_index_recipe([str(corpus), "--cache", str(tmp_path)]) == 2
    assert f"{corpus}, line 7: must be a JSON object" in capsys.readouterr().err
    assert build_index_recipe([str(tmp_path / "none"), "--cache", str(tmp_path)]) == 2
    assert len(list(tmp_path.glob("bm25-*"))) == 1


def test_a_corpus_with_half_a_character_can_be_indexed(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(json.dumps({"id": "a", "contents": "Lima \ud800 Peru"}) + "\n")
    assert Bm25Search(path, tmp_path).lookup("Peru", 1)[0].id == "a"
