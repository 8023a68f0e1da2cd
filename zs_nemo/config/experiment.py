"""Settings of the run around the loop: resources, data, evaluation, the run directory."""

import math
from dataclasses import dataclass, field
from enum import Enum

from zs_nemo.config.loggers import MlflowLoggerConfig, WandbLoggerConfig
from zs_nemo.config.search import NoSearchConfig, SearchConfig, SimulatedSearchConfig


class Accelerator(Enum):
    """What the roles run on."""

    auto = "auto"
    """GPUs where PyTorch sees one and vLLM is not the build for CPUs."""
    cpu = "cpu"
    gpu = "gpu"


@dataclass(kw_only=True)
class TrainerConfig:
    """``trainer``: resources and length of the run, by NeMo's names."""

    num_nodes: int = 1
    devices: int = 2
    """Training ranks per node."""
    accelerator: Accelerator = Accelerator.auto
    max_steps: int = 12
    """Reinforcement-learning steps; also m of the curriculum."""

    def __post_init__(self) -> None:
        for name in ("num_nodes", "devices"):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name}={getattr(self, name)} must be at least 1")
        if self.max_steps < 0:
            raise ValueError(f"trainer.max_steps={self.max_steps} must not be negative")


@dataclass(kw_only=True)
class ExpManagerConfig:
    """``exp_manager``: the run directory, its checkpoints, and who is told how the run goes."""

    exp_dir: str = "runs"
    name: str = "quickstart"
    """The run directory is exp_dir/name. Asked again with the same one, a recipe resumes."""
    save_every_n_steps: int = 4
    save_top_k: int = 2
    """Newest checkpoints kept."""
    async_save: bool = True
    """Write checkpoints while the next episodes are rolled out. Takes memory for a copy of what training changes; a
    checkpoint counts once those episodes have ended."""
    trajectories_per_step: int = 4
    """Trajectories written to trajectories/ each step; their turns and searches are drawn in timeline.json too."""
    create_tensorboard_logger: bool = True
    create_wandb_logger: bool = False
    """Weights & Biases; needs the package ``wandb`` and, unless offline, ``WANDB_API_KEY`` in the environment."""
    wandb_logger_kwargs: WandbLoggerConfig = field(default_factory=WandbLoggerConfig)
    create_mlflow_logger: bool = False
    """MLflow; needs the package ``mlflow``."""
    mlflow_logger_kwargs: MlflowLoggerConfig = field(default_factory=MlflowLoggerConfig)
    prometheus_port: int = 0
    """Where Prometheus finds the last step's metrics while the run is under way; 0 for nowhere."""
    prometheus_host: str = "127.0.0.1"
    """Address that the metrics are served on; 0.0.0.0 lets other machines read them."""

    def __post_init__(self) -> None:
        if not 0 <= self.prometheus_port <= 65535:
            raise ValueError(f"exp_manager.prometheus_port={self.prometheus_port} must be 0 (off) or in 1..65535")
        if not self.prometheus_host:
            raise ValueError(
                "exp_manager.prometheus_host is empty; set it to 127.0.0.1 for this machine alone, 0.0.0.0 for all"
            )
        for name in ("save_every_n_steps", "save_top_k"):
            if getattr(self, name) < 1:
                raise ValueError(f"exp_manager.{name}={getattr(self, name)} must be at least 1")
        if not self.name:
            raise ValueError("exp_manager.name is empty; give the run a name, such as exp_manager.name=my_run")


@dataclass(kw_only=True)
class ClusterConfig:
    """``cluster``: where processes run."""

    ray_address: str = ""
    """Address of a running Ray cluster; empty starts one on this machine for the time of the run."""
    master_port: int = 0
    """Port for torch.distributed; 0 takes a free one."""
    threads_per_process: int = 0
    """Compute threads of one engine or rank on CPU. 0 divides the machine's cores among those that compute at the same
    time."""
    threads_of_lone_engine: int = 0
    """Compute threads of one policy engine on CPU while nothing else computes, neither ranks nor the simulator. 0
    divides the machine's cores among the policy's engines. The simulator's get as many together while the policy's
    wait for them."""
    startup_timeout_s: float = 300.0
    gpus_per_node: int = 0
    """GPUs of a node that ``recipes/plan.py`` plans for; a run that finds fewer is refused. 0 asks this machine."""
    gpu_memory_gib: float = 0.0
    """Memory of one GPU that ``recipes/plan.py`` plans for; 0 asks this machine."""

    def __post_init__(self) -> None:
        if self.gpus_per_node < 0 or self.gpu_memory_gib < 0:
            raise ValueError(
                f"cluster.gpus_per_node={self.gpus_per_node} and cluster.gpu_memory_gib={self.gpu_memory_gib} must not "
                "be negative; 0 asks this machine"
            )
        if bool(self.gpus_per_node) != bool(self.gpu_memory_gib):
            raise ValueError(
                f"cluster.gpus_per_node={self.gpus_per_node} and cluster.gpu_memory_gib={self.gpu_memory_gib} belong "
                "together; set both (8 and 80 for a node of A100-80G), or neither"
            )
        if not 0 < self.startup_timeout_s < math.inf:
            raise ValueError(f"cluster.startup_timeout_s={self.startup_timeout_s:g} must be positive, such as 300")
        for name in ("threads_per_process", "threads_of_lone_engine"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"cluster.{name}={getattr(self, name)} must not be negative; 0 divides the machine's cores"
                )
        if self.master_port and not 1024 <= self.master_port <= 65535:
            raise ValueError(f"cluster.master_port={self.master_port} must be 0 (any free port) or in 1024..65535")


@dataclass(kw_only=True)
class DataConfig:
    """``data``: questions and the corpus."""

    source: str = "facts"
    """``facts`` for the facts world that is built from installed packages: the corpus, the examples in the simulator's
    prompts, the scripted episodes of the warm start, and the sets ``facts:train``, ``facts:validation``,
    ``facts:test``."""
    train: list[str] = field(default_factory=lambda: ["facts:train"])
    """Sets that are trained on: ``facts:train``; a known set with its split (``nq:train``, ``hotpotqa:train``), from
    the Hugging Face hub; ``pyserini/NAME:SPLIT``; ``hub:OWNER/NAME[/FOLDER]:SPLIT[@REVISION]``; or a .jsonl or .parquet
    file in the form of FlashRAG, Search-R1, ZeroSearch or DPR. ``recipes/questions.py`` lists and checks them."""
    train_counts: list[int] = field(default_factory=list)
    """Questions taken of each set of ``train``, drawn by ``seed``; 0 for all of one. Empty for all of every one."""
    train_weights: list[float] = field(default_factory=list)
    """Share of each set of ``train`` in an epoch, in any unit; a set that is too small for its share is repeated. Empty
    for every question once."""
    validation: list[str] = field(default_factory=lambda: ["facts:validation"])
    """Sets that are evaluated on with ``evaluation.split=validation``."""
    test: list[str] = field(default_factory=lambda: ["facts:test"])
    """Sets that are evaluated on, named as in ``train``."""
    test_counts: list[int] = field(default_factory=list)
    """Questions taken of each set of ``test``, drawn by ``seed``; 0 for all of one. Empty for all of every one."""
    max_skipped_rows: int = 0
    """Rows that may be unusable in all sets together; they are named and left out. With more the run does not start."""
    seed: int = 0
    """Of the facts' split and of what is drawn from sets; the same for all runs that are to be compared."""
    num_test_questions: int = 320
    num_validation_questions: int = 64

    def beyond_facts(self, role: str) -> list[str]:
        """Return the sets of ``train``, ``validation`` or ``test`` that are not the facts world's."""
        sets: list[str] = getattr(self, role)
        return [name for name in sets if not name.startswith("facts:")]

    def __post_init__(self) -> None:
        self._check_sets()
        self._check_shares()
        if self.max_skipped_rows < 0:
            raise ValueError(f"data.max_skipped_rows={self.max_skipped_rows} must be 0 (none) or positive")

    def _check_sets(self) -> None:
        for name in ("train", "validation", "test"):
            sets: list[str] = getattr(self, name)
            if not sets:
                raise ValueError(f"data.{name} is empty; name at least one set, such as data.{name}=[facts:{name}]")
            if twice := sorted({each for each in sets if sets.count(each) > 1}):
                raise ValueError(
                    f"data.{name} names {twice[0]!r} more than once; name it once"
                    + (", and give it more weight with data.train_weights" if name == "train" else "")
                )

    def _check_shares(self) -> None:
        for name in ("train_counts", "train_weights", "test_counts"):
            role = name.partition("_")[0]
            values, sets = getattr(self, name), getattr(self, role)
            if values and len(values) != len(sets):
                raise ValueError(
                    f"data.{name}={values} has {len(values)} entries for the {len(sets)} sets of data.{role}; give one "
                    "for each set, or none"
                )
        if any(count < 0 for count in [*self.train_counts, *self.test_counts]):
            raise ValueError(
                f"data.train_counts={self.train_counts} and data.test_counts={self.test_counts} must hold no negative "
                "number; 0 takes all questions of a set"
            )
        if not all(weight > 0 and math.isfinite(weight) for weight in self.train_weights):
            raise ValueError(
                f"data.train_weights={self.train_weights} must be positive; leave a set without weight out of "
                "data.train"
            )


@dataclass(kw_only=True)
class WarmStartConfig:
    """``warm_start``: supervised steps on scripted episodes before reinforcement learning."""

    steps: int = 10
    """0 starts reinforcement learning from the model as it is."""
    global_batch_size: int = 32
    """Episodes per step."""
    lr: float = 2e-5

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"warm_start.steps={self.steps} must be 0 (no warm start) or positive")
        if self.global_batch_size < 1:
            raise ValueError(f"warm_start.global_batch_size={self.global_batch_size} must be at least 1")
        if not 0 < self.lr < math.inf:
            raise ValueError(
                f"warm_start.lr={self.lr} must be a positive number; set warm_start.steps=0 for no warm start"
            )


@dataclass(kw_only=True)
class EvaluationConfig:
    """``evaluation``: questions answered on a real engine, before and after."""

    split: str = "test"
    """``test`` for reporting; ``validation`` while tuning."""
    num_questions: int = 0
    """0 for the whole split."""
    num_simulator_questions: int = 64
    """Questions that the final policy answers on the simulator too, which shows how far training and reality lie
    apart; 0 for all. The simulator needs as long for one as a real engine for several."""
    temperatures: list[float] = field(default_factory=lambda: [0.0, 1.0])
    """0 is greedy."""
    num_documents: int = 1
    """Documents per search, whatever ``search`` says."""
    search: SearchConfig | None = None
    """The real engine that judges; null for BM25, over ``search.corpus`` of the run or the facts world's corpus.
    Another one is chosen from the same group: ``+search@evaluation.search=retriever``."""
    bootstrap_samples: int = 2000

    def __post_init__(self) -> None:
        if isinstance(self.search, SimulatedSearchConfig):
            raise ValueError(
                "evaluation.search is a simulator, and a policy is judged on a real engine; choose retriever, web or "
                "bm25 (with evaluation.num_simulator_questions the simulator is asked besides)"
            )
        if isinstance(self.search, NoSearchConfig):
            raise ValueError(
                "evaluation.search=none answers no search, and a policy is judged on a real engine; choose retriever, "
                "web or bm25, or leave it null for bm25 (the answers without a search are in every final evaluation)"
            )
        if self.split not in ("test", "validation"):
            raise ValueError(f"evaluation.split={self.split!r} must be test or validation")
        for name in ("num_questions", "num_simulator_questions"):
            if getattr(self, name) < 0:
                raise ValueError(f"evaluation.{name}={getattr(self, name)} must be 0 (all) or positive")
        for name in ("num_documents", "bootstrap_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluation.{name}={getattr(self, name)} must be at least 1")
        if not all(value >= 0 and math.isfinite(value) for value in self.temperatures):
            raise ValueError(
                f"evaluation.temperatures={self.temperatures} must be finite and not negative; 0 is greedy decoding"
            )
        # As they stand in an evaluation's name, which is that of its file.
        if len({f"{value:g}" for value in self.temperatures}) < len(self.temperatures):
            raise ValueError(f"evaluation.temperatures={self.temperatures} names one twice; name each once")
