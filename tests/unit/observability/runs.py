"""Small episodes and a small finished run, for the tests of what is made of them."""

from collections.abc import Sequence
from pathlib import Path

from tests.fakes import CharTokenizer
from zs_nemo.config.recipe import GrpoRecipeConfig
from zs_nemo.config.search import SimulatedSearchConfig
from zs_nemo.evaluation.scores import EvaluationName, EvaluationRow, summarise
from zs_nemo.observability.metrics import step_metrics
from zs_nemo.observability.phase import Phase
from zs_nemo.observability.report import write_report
from zs_nemo.observability.run_dir import RunDir
from zs_nemo.observability.timer import StageTimer
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.question import Question
from zs_nemo.types.search import Document, SearchResult
from zs_nemo.types.trajectory import Role, Status, Trajectory, TrajectoryGroup, Turn


def config(seed: int = 1) -> GrpoRecipeConfig:
    return GrpoRecipeConfig(seed=seed, search=SimulatedSearchConfig())


def question(text: str = "Where?", kind: str = "capital") -> Question:
    return Question(id=f"q/{text}", text=text, answers=("Paris",), kind=kind, split="test", evidence=("d1",))


def result(*, noisy: bool = False, defects: dict[str, int] | None = None, source: str = "simulator") -> SearchResult:
    return SearchResult(
        documents=(Document(text="a document"),),
        source=source,
        noisy=noisy,
        latency_s=0.5,
        prompt_tokens=10,
        completion_tokens=4,
        defects=defects or {},
    )


def trajectory(
    segments: Sequence[tuple[str, Role]],
    results: Sequence[SearchResult] = (),
    *,
    reward: float = 0.0,
    status: Status = Status.answered,
    key: tuple[int, int, int] = (0, 0, 0),
) -> Trajectory:
    """Build an episode from its text, one token a character; the i-th turn got ``results[i]``."""
    step, prompt, member = key
    episode = Trajectory(
        key=SampleKey(run_seed=1, step=step, prompt=prompt, member=member),
        question=question(),
        token_ids=[],
        roles=[],
        generation_logprobs=[],
        status=status,
        reward=reward,
        answer="Paris" if status is Status.answered else None,
    )
    for text, role in segments:
        start, ids = len(episode.token_ids), [ord(char) for char in text]
        episode.token_ids += ids
        episode.roles += [role] * len(ids)
        episode.generation_logprobs += [-0.1 if role is Role.policy else 0.0] * len(ids)
        if role is Role.policy:
            found = results[len(episode.turns)] if len(episode.turns) < len(results) else None
            episode.turns.append(
                Turn(
                    start=start,
                    end=len(episode.token_ids),
                    text=text,
                    query="q" if found else None,
                    result=found,
                    sampling_seed=7,
                    weight_version=step,
                    sampled_ids=tuple(ids),
                )
            )
    return episode


def searching(*, reward: float = 1.0, document: str = "doc", **more: object) -> Trajectory:
    """Build an episode with one search. Its answer repeats the document."""
    segments = [("prompt", Role.prompt), ("<search>", Role.policy), (document, Role.document), ("answer", Role.policy)]
    episode = trajectory(segments, [result()], reward=reward, **more)  # type: ignore[arg-type]
    episode.answer = document
    return episode


def group(*members: Trajectory) -> TrajectoryGroup:
    return TrajectoryGroup(question=members[0].question, trajectories=list(members))


def rows(f1: Sequence[float], *, kinds: Sequence[str] = ("capital",), searches: int = 1) -> list[EvaluationRow]:
    return [
        EvaluationRow(
            question_id=f"q{index}",
            kind=kinds[index % len(kinds)],
            answers=("Paris",),
            prediction="Paris",
            em=float(value == 1.0),
            published_em=float(value >= 0.5),
            f1=value,
            searches=searches,
            status="answered",
            hops=1 + index % 2,
        )
        for index, value in enumerate(f1)
    ]


def finished_run(path: Path, *, seed: int = 1, document: str = "doc", engine: str = "simulator") -> Path:
    """Write a whole run of three steps with a report."""
    before, after = rows([0.0, 0.0, 0.5, 1.0] * 5), rows([0.0, 1.0, 1.0, 1.0] * 5)
    with RunDir(path, config(seed)) as run:
        timer = StageTimer()
        run.log_step(0, {"train/loss": 2.0}, Phase.warm_start)
        for step in range(3):
            groups = [group(searching(document=document, key=(step, 0, 0)), searching(reward=0.0, key=(step, 0, 1)))]
            updates = [{"kl": 0.01 * step, "entropy": 1.0, "num_loss_tokens": 28.0}]
            run.log_step(step, step_metrics(groups, updates, noise=0.1 * step))
            run.write_trajectories(step, groups, CharTokenizer(), 2)
        for temperature in (0.0, 1.0):
            name = EvaluationName(when="before", engine="bm25", temperature=temperature)
            run.write_evaluation(str(name), summarise(before, name), [row.to_json() for row in before], step=0)
            name = EvaluationName(when="after", engine="bm25", temperature=temperature)
            summary = summarise(after, name, baseline=before)
            run.write_evaluation(str(name), summary, [row.to_json() for row in after], step=3)
        counts = {"calls": 6, "failures": 1, "prompt_tokens": 60, "completion_tokens": 24, "busy_s": 3.0}
        real = {"calls": 80, "failures": 0, "prompt_tokens": 0, "completion_tokens": 0, "busy_s": 1.0}
        roles = {
            "training": {"held_core_s": 3600.0, "busy_core_s": 1800.0},
            "simulator": {
                "held_core_s": 1800.0,
                "busy_core_s": 450.0,
                "requests": 7,
                "prompt_tokens": 70,
                "completion_tokens": 28,
            },
        }
        searches = {"rl": {engine: counts}, "evaluation": {"bm25": real}}
        run.save_progress(timer, search=searches, peak_memory_gib=8.5, roles=roles)
        run.finish()
    write_report(path)
    return path
