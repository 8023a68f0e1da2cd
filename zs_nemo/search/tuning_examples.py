"""Judged searches as token sequences for a simulator to learn from: its own prompt, then the documents to write."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from zs_nemo.config.search import DocumentsPerCompletion, OffTarget, SimulatedSearchConfig
from zs_nemo.search.build import build_prompts
from zs_nemo.search.demonstrations import Demonstrations
from zs_nemo.search.simulator_prompts import SimulatorPrompts, one_line, safe_query
from zs_nemo.search.text_generators import encode_prompt
from zs_nemo.types.completion import Prompt
from zs_nemo.types.generation import Tokenizer
from zs_nemo.types.interaction import Interaction
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.search import Document, SearchRequest


@dataclass(frozen=True, kw_only=True)
class TuningExample:
    """One completion to imitate."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    """The documents, with what ends them."""
    useful: bool


class ExampleWriter:
    """Writes examples exactly as the simulator will be asked and read afterwards."""

    def __init__(
        self,
        search: SimulatedSearchConfig,
        tokenizer: Tokenizer,
        end_of_text: int,
        demonstrations: Demonstrations | None,
    ) -> None:
        """``end_of_text`` ends a completion of several documents; a single one ends with its line."""
        # The verdict says what is useful; a useful document behind a noisy prompt would teach to leak answers.
        search = replace(search, off_target=OffTarget.answer)
        self._prompts: SimulatorPrompts = build_prompts(search, demonstrations)
        self._demonstrations = demonstrations
        self._tokenizer = tokenizer
        self._end_of_text = end_of_text
        self._max_tokens = search.max_sequence_tokens
        self.num_too_long = 0
        """Examples that did not fit into ``search.max_sequence_tokens`` and were left out."""

    def write(self, rows: Sequence[Mapping[str, Any]], *, seed: int, file: str = "") -> list[TuningExample]:
        """Return the examples of judged searches, ``Interaction`` rows with ``useful``.

        Raises ``ValueError`` naming ``file`` and line, or row of a Parquet file, for one that is none.
        """
        found = []
        kind = "row" if file.endswith(".parquet") else "line"
        for number, row in enumerate(rows):
            place = f"sft.examples: {file}, {kind} {number + 1}"
            try:
                interaction = Interaction.from_row(row)
                if not interaction.documents:
                    raise ValueError("it has no document, so that there is nothing to learn to write")
                if not isinstance(row.get("useful"), bool):
                    raise ValueError(f"useful is {row.get('useful')!r} and must be true or false")
            except ValueError as error:
                raise ValueError(f"{place}: {error}; mend or remove the {kind}") from error
            found += self._examples(interaction, row["useful"], seed, number)
        return found

    def _examples(self, interaction: Interaction, useful: bool, seed: int, number: int) -> list[TuningExample]:
        key = SampleKey(run_seed=seed, step=0, prompt=number, member=0, turn=interaction.turn)
        request = SearchRequest(
            query=interaction.query,
            question=interaction.question,
            answers=interaction.answers,
            key=key,
            num_documents=len(interaction.documents),
            noisy=not useful,
        )
        single = self._prompts.documents is DocumentsPerCompletion.one
        parts = [(document,) for document in interaction.documents] if single else [interaction.documents]
        found = []
        for place, documents in enumerate(parts):
            topic = "" if useful else self._topic_of(documents, request)
            prompt = self._prompts.prompt(request, place, noisy=not useful, num_documents=len(documents), topic=topic)
            example = self._example(prompt, documents, useful, single=single)
            if len(example.prompt_ids) + len(example.completion_ids) > self._max_tokens:
                self.num_too_long += 1
            else:
                found.append(example)
        return found

    def _topic_of(self, documents: Sequence[Document], request: SearchRequest) -> str:
        """Return what useless documents are about, so that the topic in their prompt is one that is kept to."""
        if self._demonstrations is None:
            return ""
        topics = (self._demonstrations.topic_of(document.text) for document in documents)
        return next(filter(None, topics), safe_query(request.query))

    def _example(self, prompt: Prompt, documents: Sequence[Document], useful: bool, *, single: bool) -> TuningExample:
        texts = [one_line(document.text) for document in documents]
        if single:
            ids = self._tokenizer.encode(f" {texts[0]}\n", add_special_tokens=False)
        else:
            written = "\n".join(f"Doc {place}: {text}" for place, text in enumerate(texts, start=1))
            ids = [*self._tokenizer.encode(written, add_special_tokens=False), self._end_of_text]
        prompt_ids = encode_prompt(prompt, self._tokenizer)
        return TuningExample(prompt_ids=tuple(prompt_ids), completion_ids=tuple(ids), useful=useful)
