"""Settings of the search server and of the recipe that starts it."""

from dataclasses import dataclass, field

from zs_nemo.config.cost import CostConfig
from zs_nemo.config.endpoints import check_variable_name
from zs_nemo.config.experiment import ClusterConfig, DataConfig, TrainerConfig
from zs_nemo.config.faults import FaultConfig
from zs_nemo.config.rollout import CoinScope, CurriculumConfig, CurriculumName
from zs_nemo.config.search import NoSearchConfig, SearchConfig, SeedGroup, SimulatedSearchConfig


@dataclass(kw_only=True)
class ServerNoiseConfig:
    """``server.noise``: how noisy the simulator's answers are for a request that says nothing about it."""

    probability: float = 0.0
    """P(noisy) of every search."""
    searches_per_step: int = 0
    """For a trainer that cannot name its step: the curriculum goes one step on after so many searches, those of empty
    queries not counted, and ``probability`` is not used. 0 is off. Needs ``trainer.max_steps``. A step of Search-R1
    asks at most batch size x samples x turns."""
    first_step: int = 0
    """Step that the count begins with; a server that is started again in the middle of a training has forgotten it."""

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"server.noise.probability={self.probability} must lie in [0, 1]")
        if self.searches_per_step < 0 or self.first_step < 0:
            raise ValueError(
                f"server.noise.searches_per_step={self.searches_per_step} (0 is off) and "
                f"server.noise.first_step={self.first_step} must not be negative"
            )
        if self.first_step and not self.searches_per_step:
            raise ValueError(
                f"server.noise.first_step={self.first_step} has no effect without server.noise.searches_per_step, "
                "which counts on from it; set that as well, or have the trainer name its step"
            )
        if self.searches_per_step and self.probability:
            raise ValueError(
                f"server.noise.probability={self.probability} has no effect with server.noise.searches_per_step="
                f"{self.searches_per_step}, which follows the curriculum; set one of them to 0"
            )


@dataclass(kw_only=True)
class ServerConfig:
    """``server``: where it listens, who may ask, and how much."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all of this machine's, which should then have a token."""
    port: int = 8000
    """0 takes a free one."""
    token_variable: str = ""
    """Name of the environment variable that holds the token, which a client sends as a bearer or as the password of
    Basic (``http://:TOKEN@HOST:PORT/retrieve``); empty lets everybody ask."""
    max_queries: int = 4096
    """Queries of one request. Search-R1's trainer sends those of a whole batch at once."""
    max_query_characters: int = 4000
    """A longer query is cut, a longer question or answer refused."""
    max_topk: int = 100
    """Documents a query."""
    max_body_mib: float = 16.0
    max_concurrency: int = 64
    """Searches under way at once."""
    max_queue: int = 8192
    """Searches that wait for their turn; what would come on top is refused with 429."""
    search_timeout_s: float = 60.0
    """Time for one search, from its turn on, with all tries."""
    max_attempts: int = 3
    """Tries of one search. Of a request's searches up to half may fail, and find nothing; with more it fails."""
    drain_timeout_s: float = 30.0
    """Time that requests under way get to end when the server is told to stop."""
    noise: ServerNoiseConfig = field(default_factory=ServerNoiseConfig)

    def __post_init__(self) -> None:
        self._check_access()
        for name in ("max_queries", "max_query_characters", "max_topk", "max_concurrency", "max_attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"server.{name}={getattr(self, name)} must be at least 1")
        for name in ("max_body_mib", "search_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"server.{name}={getattr(self, name)} must be positive")
        for name in ("max_queue", "drain_timeout_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"server.{name}={getattr(self, name)} must not be negative")
        if self.max_queries > self.max_queue + self.max_concurrency:
            raise ValueError(
                f"server.max_queries={self.max_queries} is more than server.max_concurrency + server.max_queue = "
                f"{self.max_queue + self.max_concurrency}: a request of that size could never be taken; lower the one "
                "or raise the others"
            )

    def _check_access(self) -> None:
        if not self.host:
            raise ValueError(
                "server.host is empty; set it to 127.0.0.1 for this machine alone, 0.0.0.0 for all that reach it"
            )
        if not 0 <= self.port <= 65535:
            raise ValueError(f"server.port={self.port} must lie in 0..65535; 0 takes a free one")
        if self.token_variable:
            check_variable_name("server.token_variable", self.token_variable)


@dataclass(kw_only=True)
class ServeSearchConfig:
    """Everything that ``recipes/serve_search.py`` depends on. Groups that a training run has too mean the same."""

    seed: int = 1
    """Of the noise coins and of the simulator."""
    server: ServerConfig = field(default_factory=ServerConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    """The engine; ``search.num_documents`` is the answer to a request that names no topk."""
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    """Turns the ``step`` of a request into P(noisy). With ``coin=group`` those searches share a coin that name the same
    question and turn, in the same step where they name it or it is counted, else in the same request.
    ``name=adaptive`` and ``coin=trajectory`` need what a training alone knows."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """``max_steps`` is m of the curriculum, the steps of the training that asks; 0 where nobody has said it.
    ``accelerator`` is what a simulator of our own runs on."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Of a simulator of our own."""
    faults: FaultConfig = field(default_factory=FaultConfig)
    """``max_engine_restarts`` of a simulator of our own; nothing else of it is read."""
    data: DataConfig = field(default_factory=DataConfig)
    """The facts world, whose corpus BM25 searches unless ``search.corpus`` names another."""
    cost: CostConfig = field(default_factory=CostConfig)
    """``usd_per_1000_searches`` is what ``/metrics`` sums up of web searches; nothing else of it is read."""
    log_dir: str = "runs/serve_search"
    """Folder for the logs of a simulator's engines."""

    @property
    def lacks_max_steps(self) -> bool:
        """Whether the curriculum cannot say how noisy a step is, for want of ``trainer.max_steps``."""
        curriculum = self.curriculum
        is_level = curriculum.name is CurriculumName.constant and curriculum.constant_noise is not None
        return not self.trainer.max_steps and not is_level

    def __post_init__(self) -> None:
        if isinstance(self.search, NoSearchConfig):
            raise ValueError(
                "search=none answers no search, so there is nothing to serve; choose search=bm25, simulated, retriever "
                "or web"
            )
        if self.curriculum.name is CurriculumName.adaptive:
            raise ValueError(
                "curriculum.name=adaptive follows the rewards of a training, which a search server never sees; choose "
                "another curriculum.name, or have the trainer send the noise with each request"
            )
        if self.curriculum.coin is CoinScope.trajectory:
            raise ValueError(
                "curriculum.coin=trajectory: no request says which searches are of one trajectory; set "
                "curriculum.coin=query, or group for the samples of a question in the same turn"
            )
        if isinstance(self.search, SimulatedSearchConfig):
            self._check_simulated(self.search)

    def _check_simulated(self, search: SimulatedSearchConfig) -> None:
        if self.server.noise.searches_per_step and self.lacks_max_steps:
            raise ValueError(
                f"server.noise.searches_per_step={self.server.noise.searches_per_step} follows the curriculum of a "
                "training of which trainer.max_steps=0 does not say how many steps it has; set trainer.max_steps to as "
                "many as your trainer is set to"
            )
        if search.seed_group is SeedGroup.prompt:
            raise ValueError(
                "search.seed_group=prompt: no request says which searches are of samples of one prompt; set "
                "search.seed_group=run, with which equal searches are asked once whoever asks, or request"
            )
