"""Who answers questions and what may be searched: a policy in engines of our own or behind an endpoint, an engine."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from zs_nemo.cluster.accelerator import uses_gpu
from zs_nemo.cluster.engine_pool import EnginePool
from zs_nemo.cluster.preflight import check_simulator
from zs_nemo.cluster.search_engines import RemoteEngine, build_bm25, build_remote_engine, check_own_corpus, corpus_of
from zs_nemo.cluster.simulator_system import simulator_engines
from zs_nemo.cluster.system import System
from zs_nemo.config.answering import AnsweringConfig
from zs_nemo.config.endpoints import ApiKind
from zs_nemo.config.search import Bm25SearchConfig, SimulatedSearchConfig
from zs_nemo.generation.endpoint_engine import EndpointEngine, PieceTokenizer
from zs_nemo.qa.facts import FactsWorld
from zs_nemo.qa.tags import STOP_STRINGS
from zs_nemo.rollout.callbacks import EngineSearch
from zs_nemo.rollout.episode import SearchSetting
from zs_nemo.rollout.ledger import SearchLedger
from zs_nemo.rollout.prompt_form import PromptForm
from zs_nemo.search.bm25 import Bm25Search
from zs_nemo.search.build import Simulator, build_simulator
from zs_nemo.search.completion_form import CompletionForm
from zs_nemo.search.demonstrations import build_demonstrations
from zs_nemo.search.endpoint_trial import Trial, check_served
from zs_nemo.search.endpoints import EndpointPool
from zs_nemo.search.http_client import secret_from
from zs_nemo.search.text_generators import EndpointTextGenerator
from zs_nemo.search.web import WebSearch
from zs_nemo.types.generation import GenerationEngine, SamplingParams, Tokenizer
from zs_nemo.types.search import SearchEngine
from zs_nemo.weights.pretrained import load_tokenizer, resolve_model

OnPlaced = Callable[[str, bool], None]


@dataclass(frozen=True, kw_only=True)
class AskedPolicy:
    """A policy that is up, with the engines of a simulator beside it."""

    engine: GenerationEngine
    tokenizer: Tokenizer
    form: PromptForm
    system: System | None = None
    """Our own engines; None where an endpoint answers."""
    endpoint: EndpointEngine | None = None
    """The same as ``engine``, where it is one."""
    pool: EndpointPool | None = None
    """Its connections."""
    simulator: EnginePool | None = None
    """Engines of our own that write documents; None without any."""


@dataclass(frozen=True, kw_only=True)
class Answering:
    """The parts that answering needs."""

    policy: AskedPolicy
    search: SearchSetting | None
    """None for closed book. A simulator is asked for useful documents alone."""
    remote: RemoteEngine | None
    simulator: Simulator | None

    async def aclose(self) -> None:
        """Close connections to other servers, in the event loop that has used them."""
        for part in (self.remote, self.simulator):
            if part is not None:
                await part.aclose()
        if self.policy.pool is not None:
            await self.policy.pool.close()


@contextmanager
def answering(
    cfg: AnsweringConfig,
    world: FactsWorld,
    ledger: SearchLedger,
    run_path: Path,
    on_placed: OnPlaced | None = None,
    check: Callable[[Tokenizer], None] = lambda _: None,
) -> Iterator[Answering]:
    """Start what the settings name, and end it with the block. Every search is counted by ``ledger``.

    ``check`` is given the policy's tokenizer before anything is started, and may raise.
    Raises ``ValueError`` before anything is started for what can be known, an endpoint that serves another model
    included; otherwise what ``System.start`` raises.
    """
    check_own_corpus(cfg.search, "search", [], world)
    remote = build_remote_engine(cfg.search, cfg.cost, num_searches_before=ledger.asked(WebSearch.name))
    with ExitStack() as stack:
        with ThreadPoolExecutor(1) as pool:
            # The index needs seconds of one core while the engines mostly wait for imports.
            local = pool.submit(_local_engine, cfg, world)
            policy = stack.enter_context(_asked_policy(cfg, run_path, on_placed, check))
            engine: SearchEngine | None = remote or local.result()
        simulator = None
        if isinstance(cfg.search, SimulatedSearchConfig):
            simulator = build_simulator(
                cfg.search,
                engine=policy.simulator,
                tokenizer=_simulator_tokenizer(cfg.search, policy.tokenizer),
                demonstrations=build_demonstrations(world),
            )
            engine = simulator.engine
        search = None
        if engine is not None:
            callback = EngineSearch(ledger.watch(engine))
            search = SearchSetting(
                callback=callback,
                num_documents=cfg.search.num_documents,
                # Engines beside a policy that servers serve have no watchdog.
                has_deadline=policy.system is None or not cfg.search.needs_engines,
                account=simulator.account if simulator is not None else str,
            )
        yield Answering(policy=policy, search=search, remote=remote, simulator=simulator)


def _local_engine(cfg: AnsweringConfig, world: FactsWorld) -> Bm25Search | None:
    if not isinstance(cfg.search, Bm25SearchConfig):
        return None
    on_gpus = not cfg.endpoint.addresses and uses_gpu(cfg)
    return build_bm25(corpus_of(cfg.search, world), world=world, on_gpus=on_gpus)


def _simulator_tokenizer(search: SimulatedSearchConfig, policys: Tokenizer) -> Tokenizer:
    # Without engines of our own it only counts the tokens of documents, which are the policy's.
    return load_tokenizer(resolve_model(search.model, setting="search.model")) if search.needs_engines else policys


@contextmanager
def _asked_policy(
    cfg: AnsweringConfig, run_path: Path, on_placed: OnPlaced | None, check: Callable[[Tokenizer], None]
) -> Iterator[AskedPolicy]:
    if cfg.endpoint.addresses:
        pieces = PieceTokenizer()
        check(pieces)
        with _policy_of_servers(cfg, pieces, run_path) as policy:
            yield policy
        return
    tokenizer = load_tokenizer(resolve_model(cfg.policy.model, setting="policy.model"))
    check(tokenizer)
    form = policy_form(cfg)
    with System.start(cfg, run_path, on_placed) as system:
        yield AskedPolicy(
            engine=system.generation, tokenizer=tokenizer, form=form, system=system, simulator=system.simulator
        )


def policy_form(cfg: AnsweringConfig) -> PromptForm:
    """Return how the asked policy gets its prompts."""
    return PromptForm(api=cfg.api, may_open=cfg.api is ApiKind.completions or not cfg.endpoint.addresses)


@contextmanager
def _policy_of_servers(cfg: AnsweringConfig, tokenizer: PieceTokenizer, run_path: Path) -> Iterator[AskedPolicy]:
    settings = cfg.endpoint
    key = secret_from(settings.api_key_variable, "endpoint.api_key_variable")
    asked = CompletionForm(model=settings.served_model, api=cfg.api, extra_body=settings.extra_body)
    sampling = SamplingParams(max_tokens=cfg.rollout.max_turn_tokens, stop=STOP_STRINGS)
    trial = Trial(form=asked, sampling=sampling, timeout_s=settings.pool.request_timeout_s)
    check_served(settings.addresses, trial, key, setting="endpoint.addresses")
    pool = EndpointPool(settings.addresses, settings.pool, api_key=key)
    engine = EndpointEngine(EndpointTextGenerator(pool, asked), tokenizer)
    form = policy_form(cfg)
    with ExitStack() as stack:
        simulator = None
        if isinstance(cfg.search, SimulatedSearchConfig):
            check_simulator(cfg.search)
            if cfg.search.needs_engines:
                simulator = stack.enter_context(simulator_engines(cfg, run_path / "logs"))
        yield AskedPolicy(
            engine=engine, tokenizer=tokenizer, form=form, endpoint=engine, pool=pool, simulator=simulator
        )
