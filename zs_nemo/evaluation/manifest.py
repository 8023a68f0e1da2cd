"""What an evaluation was made of, frozen beside its rows: with it anyone can repeat it, or see what differs."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from zs_nemo.config.search import SearchConfig
from zs_nemo.observability.config_file import settings_that_count
from zs_nemo.observability.files import read_json, write_json
from zs_nemo.observability.run_dir import package_versions
from zs_nemo.qa import prompts
from zs_nemo.rollout.episode import EpisodeLimits
from zs_nemo.types.question import Question

FORMAT = 1
"""Raise it when a field changes its meaning: manifests of different formats are not compared."""
_ABSENT = "(absent)"
_IN_FIELDS_OF_THEIR_OWN = ("num_documents", "model", "corpus")
"""Settings of an engine that a manifest has by other names."""
_LATER_HASHES = ("chat_template_sha256", "engine_template_sha256")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")


@dataclass(frozen=True, kw_only=True)
class SetContent:
    """The questions of one set that were asked."""

    num_questions: int
    sha256: str
    """Of identifiers, texts and gold answers, in the order in which they were asked."""


@dataclass(frozen=True, kw_only=True)
class EvaluationManifest:
    """Everything that the scores of an evaluation depend on."""

    sets: dict[str, SetContent]
    """By the set's name, with its split where it has one: ``nq/test``."""
    policy: str
    """The policy's folder or, of an endpoint, the name of its model."""
    engine: str
    """``bm25``, ``simulator``, ``closed_book`` or whatever else answered."""
    engine_model: str = ""
    """The model that writes the documents; empty for an engine without one."""
    corpus_sha256: str = ""
    """Of the corpus file; empty for an engine without one on this machine."""
    num_documents: int
    """k: documents per search; 0 without searches."""
    max_turns: int
    max_turn_tokens: int
    max_document_tokens: int
    max_sequence_tokens: int
    temperature: float
    """0 is greedy."""
    top_p: float = 1.0
    seed: int
    prompt_sha256: str
    """Of all texts around the policy's own."""
    versions: dict[str, str]
    """Package -> version."""
    method: str = ""
    """How the questions were answered; empty for an evaluation in a training run, which is the agent's."""
    sample: str = ""
    """How the questions were drawn, where they are not all of their sets."""
    policy_sha256: str = ""
    """Of the policy's folder (``model_sha256``); empty for an endpoint, which shows no weights."""
    precision: str = ""
    """Numeric format that the policy computed in, with which greedy answers differ; empty where nobody says."""
    api: str = ""
    """``completions`` or ``chat``: how the policy got its prompts; empty for the former in a training run."""
    engine_model_sha256: str = ""
    """Of the folder of ``engine_model``; empty where it is no folder on this machine."""
    engine_settings: dict[str, Any] = field(default_factory=dict)
    """What the engine's answers depend on besides, by the names of ``search``."""
    chat_template_sha256: str = ""
    """Of the policy's chat template where it has its prompts by one; empty in manifests from before, too."""
    engine_template_sha256: str = ""
    """Of the wording that a simulator is asked with; empty for another engine, and in manifests from before."""

    def write(self, path: Path) -> None:
        """Write the manifest as JSON, whole or not at all."""
        write_json(path, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as a JSON object."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def read(cls, path: Path) -> "EvaluationManifest":
        """Read what ``write`` wrote; raise ``ValueError`` for a file that is no manifest of this format."""
        try:
            values = read_json(path, None)
        except ValueError as error:
            raise ValueError(f"{path} is no JSON document ({error}); write the manifest anew") from error
        return cls.from_json(values, str(path))

    @classmethod
    def from_json(cls, values: Any, where: str) -> "EvaluationManifest":
        """Read what ``to_json`` returned; raise ``ValueError``, naming ``where`` it stands, for anything else."""
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f"{where} is no evaluation manifest of format {FORMAT}; evaluate again to have one")
        values = {name: value for name, value in values.items() if name != "format"}
        known = {each.name for each in fields(cls)}
        # Fields that came later have defaults: manifests from before lack them.
        needed = {each.name for each in fields(cls) if each.default is MISSING and each.default_factory is MISSING}
        if not needed <= values.keys() <= known:
            raise ValueError(
                f"{where} lacks the fields {sorted(needed - values.keys())} and has besides "
                f"{sorted(values.keys() - known)}; evaluate again to have a whole manifest"
            )
        sets = {name: SetContent(**content) for name, content in values["sets"].items()}
        return cls(**values | {"sets": sets})

    def differences(self, other: "EvaluationManifest", *, ignore: Sequence[str] = ()) -> list[str]:
        """Name what differs, as ``field: this one's value -> the other's``, without fields that begin with ``ignore``.

        A colon at the end of one stands for the end of the field's name.
        Two policies compared under the same conditions differ in ``policy`` alone.
        """
        mine, theirs = _flat(asdict(self)), _flat(asdict(other))
        return [
            f"{name}: {mine.get(name, _ABSENT)} -> {theirs.get(name, _ABSENT)}"
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name, _ABSENT) != theirs.get(name, _ABSENT) and not f"{name}:".startswith(tuple(ignore))
        ]

    def check_repeats(self, frozen: "EvaluationManifest") -> None:
        """Raise ``ValueError``, naming what differs, unless this evaluation repeats ``frozen``; versions may differ.

        Where a model or a template lies makes no difference once its content is known to be the same.
        """
        ignore = ["versions"]
        by_content = {"policy": "policy", "engine_model": "engine_model", "engine_template": "engine_settings.template"}
        for content, place in by_content.items():
            if getattr(frozen, f"{content}_sha256") == getattr(self, f"{content}_sha256") != "":
                ignore.append(f"{place}:")
        # Manifests from before do not say it, and what they say otherwise has to do.
        ignore += [f"{name}:" for name in _LATER_HASHES if not getattr(frozen, name)]
        if changed := frozen.differences(self, ignore=ignore):
            raise ValueError(
                f"this evaluation would not repeat the one of the manifest: {'; '.join(changed)}; set these back, or "
                "evaluate under a name of its own"
            )


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What the evaluations of a run have in common."""

    policy: str
    seed: int
    limits: EpisodeLimits
    corpora: Mapping[str, Path]
    """Engine -> the file that it searches, of those that search one."""
    models: Mapping[str, str]
    """Engine -> the model that writes its documents, of those that have one."""

    def manifest(
        self, questions: Iterable[Question], *, engine: str, temperature: float, num_documents: int, step: int
    ) -> EvaluationManifest:
        """Return the manifest of one evaluation, of the policy after ``step`` updates."""
        corpus = self.corpora.get(engine)
        return EvaluationManifest(
            sets=set_contents(questions),
            policy=f"{self.policy}, step {step}",
            engine=engine,
            engine_model=self.models.get(engine, ""),
            corpus_sha256=file_sha256(corpus) if corpus else "",
            num_documents=num_documents,
            max_turns=self.limits.max_turns,
            max_turn_tokens=self.limits.max_turn_tokens,
            max_document_tokens=self.limits.max_document_tokens,
            max_sequence_tokens=self.limits.max_sequence_tokens,
            temperature=temperature,
            seed=self.seed,
            prompt_sha256=prompt_sha256(),
            versions=package_versions(),
        )


def engine_settings(search: SearchConfig) -> dict[str, Any]:
    """Return what a manifest has as ``engine_settings``."""
    settings = settings_that_count("search", search)
    return {name: value for name, value in settings.items() if name not in _IN_FIELDS_OF_THEIR_OWN}


def manifest_file(rows_file: Path) -> Path:
    """Return where the manifest of an evaluation lies whose rows are ``evaluations/NAME.jsonl``."""
    return rows_file.parent / "manifests" / f"{rows_file.stem}.json"


def manifest_differences(first_rows: Path, second_rows: Path) -> list[str]:
    """Name what two evaluations differ in besides policy and versions; nothing where one of them has no manifest.

    The policy's chat template is the policy's, and the simulator's wording counts where both manifests have its hash:
    those from before have none.
    """
    files = [manifest_file(path) for path in (first_rows, second_rows)]
    if not all(file.is_file() for file in files):
        return []
    first, second = map(EvaluationManifest.read, files)
    ignore = ["policy", "chat_template_sha256:", "versions"]
    if not (first.engine_template_sha256 and second.engine_template_sha256):
        ignore.append("engine_template_sha256:")
    return first.differences(second, ignore=ignore)


def set_contents(questions: Iterable[Question]) -> dict[str, SetContent]:
    """Return the content of each set among the questions."""
    digests: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for question in questions:
        name = set_and_split(question)
        row = [question.id, question.text, question.answers, question.answers_are_patterns]
        digests.setdefault(name, hashlib.sha256()).update(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        counts[name] = counts.get(name, 0) + 1
    return {
        name: SetContent(num_questions=counts[name], sha256=digest.hexdigest())
        for name, digest in sorted(digests.items())
    }


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, such as a corpus."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_sha256(folder: Path) -> str:
    """Return the SHA-256 of what decides what a model writes: weights, configuration, tokenizer.

    Not of what says only which library wrote the folder, nor of ``chat_template_sha256``.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.name == "config.json":
            values = read_json(path, {})
            values.pop("transformers_version", None)
            content = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
        elif path.suffix in (".safetensors", ".jinja") or path.name in _TOKENIZER_FILES:
            content = file_sha256(path)
        else:
            continue
        digest.update(f"{path.name}\0{content}\n".encode())
    return digest.hexdigest()


def chat_template_sha256(folder: Path) -> str:
    """Return the SHA-256 of the chat template among a tokenizer's settings; empty without one.

    A template that is a file of its own belongs to ``model_sha256``.
    """
    template = read_json(folder / "tokenizer_config.json", {}).get("chat_template")
    return texts_sha256(json.dumps(template, sort_keys=True)) if template else ""


def prompt_sha256(*more: str) -> str:
    """Return the SHA-256 of the prompt template, with and without searches, and of the frame around documents.

    ``more`` are the texts of a method that has its own.
    """
    texts = (
        prompts.policy_prompt("{question}"),
        prompts.closed_book_prompt("{question}"),
        prompts.information_block(["{first}", "{second}"]),
        prompts.NOTHING_FOUND,
        *more,
    )
    return texts_sha256(*texts)


def texts_sha256(*texts: str) -> str:
    """Return the SHA-256 of texts, such as those of a template, in their order."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def set_and_split(question: Question) -> str:
    """Return the name of the set that a question is of, with its split where it has one: ``nq/test``."""
    head, _, rest = question.id.partition("/")
    # The facts world has the kind of the fact in second place, and its splits are made here.
    return f"{head}/{question.split}" if head == "facts" else f"{head}/{rest.partition('/')[0]}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
