"""Builds the simulated search engine that the settings describe, whoever its language model is."""

from dataclasses import dataclass

from zs_nemo.config.collect import LlmJudgeConfig
from zs_nemo.config.endpoints import ApiKind, RecordingMode
from zs_nemo.config.search import DocumentsPerCompletion, SimulatedSearchConfig
from zs_nemo.search.completion_form import CompletionForm
from zs_nemo.search.demonstrations import Demonstrations
from zs_nemo.search.document_parser import DocumentBudget
from zs_nemo.search.endpoints import EndpointPool
from zs_nemo.search.http_client import secret_from
from zs_nemo.search.prompt_template import load_template
from zs_nemo.search.recording import RecordedSearch
from zs_nemo.search.sharing import SharedSearch
from zs_nemo.search.simulator import TextSimulator
from zs_nemo.search.simulator_prompts import STOP, ShortPrompts, SimulatorPrompts, TemplatePrompts
from zs_nemo.search.text_generators import EndpointTextGenerator, EngineTextGenerator
from zs_nemo.types.completion import TextGenerator
from zs_nemo.types.generation import GenerationEngine, SamplingParams, Tokenizer
from zs_nemo.types.search import SearchEngine


@dataclass(frozen=True, kw_only=True)
class Simulator:
    """A simulated search engine with what lies behind it."""

    engine: SharedSearch
    """What is asked."""
    pool: EndpointPool | None
    """The endpoints that answer; None with our own engines or a recording."""

    async def aclose(self) -> None:
        """Close the connections to endpoints, in the event loop that has used them."""
        if self.pool is not None:
            await self.pool.close()

    def account(self) -> str:
        """Return how the endpoints are; empty without any."""
        return self.pool.account() if self.pool is not None else ""

    def trouble(self) -> str:
        """Return "" as long as the endpoints, if there are any, can be expected to answer; else how they are."""
        return self.pool.trouble() if self.pool is not None else ""

    def metrics(self) -> dict[str, float]:
        """Return what sharing has saved and what every endpoint has done since the start, as flat numbers."""
        shared = self.engine.statistics
        counts = {"search/shared_total": shared.shared, "search/cached_total": shared.cached}
        metrics = {name: float(count) for name, count in counts.items() if count}
        for number, statistics in enumerate((self.pool.statistics if self.pool else {}).values()):
            answered = statistics.requests - statistics.failures - statistics.pushed_back - statistics.cancelled
            metrics |= {
                f"endpoint_{number}/requests_total": float(statistics.requests),
                f"endpoint_{number}/failures_total": float(statistics.failures),
                f"endpoint_{number}/pushed_back_total": float(statistics.pushed_back),
                f"endpoint_{number}/hedges_total": float(statistics.hedges),
                f"endpoint_{number}/hedges_won_total": float(statistics.hedges_won),
                f"endpoint_{number}/opened_total": float(statistics.opened),
                f"endpoint_{number}/latency_s": statistics.latency_s / answered if answered > 0 else 0.0,
                f"endpoint_{number}/latency_s_max": statistics.latency_s_max,
            }
        return metrics


def build_simulator(
    settings: SimulatedSearchConfig,
    *,
    engine: GenerationEngine | None = None,
    tokenizer: Tokenizer | None = None,
    demonstrations: Demonstrations | None = None,
) -> Simulator:
    """Return the simulator; raise ``ValueError`` for a template, a key or a recording that cannot be used.

    ``engine`` and ``tokenizer`` are our own engines' and are needed where ``settings.needs_engines``; otherwise the
    tokenizer, if there is one, counts the tokens of documents. ``demonstrations`` are needed by our short form and give
    other templates their examples.
    """
    pool: EndpointPool | None = None
    text: TextGenerator | None = None
    if settings.endpoints and settings.recording.mode is not RecordingMode.replay:
        key = secret_from(settings.api_key_variable, "search.api_key_variable")
        pool = EndpointPool(settings.endpoints, settings.pool, api_key=key)
        text = EndpointTextGenerator(pool, completion_form(settings))
    elif settings.needs_engines:
        assert engine is not None and tokenizer is not None
        text = EngineTextGenerator(engine, tokenizer, max_sequence_tokens=settings.max_sequence_tokens)
    asked: SearchEngine | None = None
    if text is not None:
        asked = _text_simulator(settings, text, tokenizer, demonstrations)
    recording = settings.recording
    if recording.mode is not RecordingMode.off:
        asked = RecordedSearch(asked, recording.mode, recording.path, name=TextSimulator.name)
    assert asked is not None
    return Simulator(engine=SharedSearch(asked, settings.seed_group, settings.cache_size), pool=pool)


def completion_form(settings: SimulatedSearchConfig | LlmJudgeConfig) -> CompletionForm:
    """Return how the endpoints of a simulator or a judge are asked."""
    return CompletionForm(model=settings.served_model, api=settings.api, extra_body=settings.extra_body)


def simulator_sampling(settings: SimulatedSearchConfig) -> SamplingParams:
    """Return how the simulator's completions are sampled."""
    is_single = settings.documents_per_completion is DocumentsPerCompletion.one
    # In a chat a model may think first, on lines of its own, and ends by itself.
    ends_with_line = is_single and settings.api is ApiKind.completions
    return SamplingParams(
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        stop=tuple(settings.stop) or (STOP if ends_with_line else ()),
    )


def build_prompts(settings: SimulatedSearchConfig, demonstrations: Demonstrations | None) -> SimulatorPrompts:
    """Return what writes the prompts; raise ``ValueError`` for a template that cannot be used."""
    documents = settings.documents_per_completion
    if not settings.template and documents is DocumentsPerCompletion.one:
        if demonstrations is None:
            raise ValueError(
                "search.documents_per_completion=one needs the facts world's examples with our own wording; set "
                "search.documents_per_completion=all, or name a template (search.template)"
            )
        return ShortPrompts(
            demonstrations,
            max_answers=settings.max_answers,
            api=settings.api,
            off_target=settings.off_target,
        )
    return TemplatePrompts(
        load_template(settings.template, documents),
        documents,
        num_words=settings.num_words,
        max_answers=settings.max_answers,
        api=settings.api,
        demonstrations=demonstrations,
        off_target=settings.off_target,
    )


def _text_simulator(
    settings: SimulatedSearchConfig,
    text: TextGenerator,
    tokenizer: Tokenizer | None,
    demonstrations: Demonstrations | None,
) -> TextSimulator:
    prompts = build_prompts(settings, demonstrations)
    is_single = prompts.documents is DocumentsPerCompletion.one
    # Our own engines keep to max_tokens themselves: one document is what they have sampled.
    budget = None
    if settings.endpoints or not is_single or settings.max_document_tokens:
        budget = DocumentBudget(max_tokens=settings.max_document_tokens or settings.max_tokens, tokenizer=tokenizer)
    return TextSimulator(text, prompts, simulator_sampling(settings), budget=budget, max_redraws=settings.max_redraws)
