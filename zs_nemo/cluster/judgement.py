"""What a language model says of recorded searches: every search once, each verdict kept as it comes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zs_nemo.config.collect import LlmJudgeConfig
from zs_nemo.observability.files import append_json_line, drop_torn_line, read_json_lines
from zs_nemo.search.all_or_none import all_or_none
from zs_nemo.search.build import completion_form
from zs_nemo.search.endpoints import EndpointPool
from zs_nemo.search.http_client import secret_from
from zs_nemo.search.judges import ContainmentJudge, LlmJudge
from zs_nemo.search.text_generators import EndpointTextGenerator
from zs_nemo.types.interaction import Interaction
from zs_nemo.types.search import RequestRejected, SearchFailure

_TOKENS = ("prompt_tokens", "completion_tokens")
_MIN_JUDGED = 20
"""Before so many verdicts a share of them says little; at the end it counts whatever their number."""


class LlmJudgement:
    """Owns the file of verdicts. What it holds is not asked again; searches that were not answered are."""

    def __init__(self, settings: LlmJudgeConfig, path: Path, *, seed: int, on_done: Callable[[], None]) -> None:
        """``on_done`` is called for every verdict that comes, and for every request that the model's server rejects."""
        self._settings = settings
        self._path = path
        self._seed = seed
        self._on_done = on_done
        drop_torn_line(path)
        rows = read_json_lines(path)
        self._known: dict[str, bool | None] = {row["id"]: row["useful"] for row in rows}
        counts = {name: sum(row.get(name, 0) for row in rows) for name in _TOKENS}
        self.account: dict[str, float] = {"requests": len(rows), **counts}
        """What the model was asked, has read and has written, over all sessions, as a role of a run's cost."""
        self._rejected: dict[str, str] = {}
        self._num_nonsense = sum(verdict is None for verdict in self._known.values())

    async def verdicts(self, found: Sequence[Interaction]) -> list[bool | None]:
        """Return a verdict for each search, None where the model has given none or rejects the request.

        Raises ``RuntimeError`` when too many are none, and when nobody answers.
        """
        new = list({each.id: each for each in found if each.id not in self._known}.values())
        try:
            if new:
                await self._ask(new)
        except SearchFailure as failure:
            raise RuntimeError(
                f"the judge did not answer ({failure}); look at its servers, or raise collect.llm.pool.deadline_s or "
                "lower collect.llm.pool.max_concurrency. Its verdicts so far are kept"
            ) from failure
        self._check_share(at_least=1)
        return [self._known.get(interaction.id) for interaction in found]

    async def told(self, found: Sequence[Interaction]) -> dict[str, Any]:
        """Return what the report tells of the judge, over all sessions."""
        by_containment = {each.id: await ContainmentJudge().is_useful(each) for each in found}
        return {
            "asked": len(self._known) + len(self._rejected),
            "nonsense": self._num_nonsense,
            "rejected": len(self._rejected),
            "disagreements_with_containment": sum(
                self._known.get(id_) is not None and self._known[id_] != verdict
                for id_, verdict in by_containment.items()
            ),
        }

    async def _ask(self, new: Sequence[Interaction]) -> None:
        settings = self._settings
        key = secret_from(settings.api_key_variable, "collect.llm.api_key_variable")
        pool = EndpointPool(settings.endpoints, settings.pool, api_key=key)
        model = EndpointTextGenerator(pool, completion_form(settings))
        judge = LlmJudge(model, seed=self._seed)
        # No more at once than the servers take: the others would only wait for a turn.
        num_at_once = min(len(new), settings.pool.max_concurrency * len(settings.endpoints))
        todo = iter(new)
        try:
            await all_or_none(self._work(judge, todo) for _ in range(num_at_once))
        finally:
            await pool.close()

    async def _work(self, judge: LlmJudge, todo: Iterator[Interaction]) -> None:
        for interaction in todo:
            try:
                verdict = await judge.verdict(interaction)
            except RequestRejected as rejected:
                # Not kept: servers that were set up wrongly can be mended, and are then asked again.
                self._rejected[interaction.id] = str(rejected)
            else:
                append_json_line(self._path, {"id": interaction.id, **asdict(verdict)})
                self._known[interaction.id] = verdict.useful
                self._num_nonsense += verdict.useful is None
                self.account["requests"] += 1
                for name in _TOKENS:
                    self.account[name] += getattr(verdict, name)
            self._on_done()
            self._check_share(at_least=_MIN_JUDGED)

    def _check_share(self, *, at_least: int) -> None:
        limit, judged = self._settings.max_nonsense_share, len(self._known) + len(self._rejected)
        without = self._num_nonsense + len(self._rejected)
        if judged < at_least or without <= limit * judged:
            return
        rejected = ""
        if self._rejected:
            last = list(self._rejected.values())[-1]
            rejected = f" ({len(self._rejected)} of the requests were rejected; the last: {last})"
        raise RuntimeError(
            f"{without} of {judged} answers of the judge are no verdict{rejected}, more than "
            f"collect.llm.max_nonsense_share={limit:g} allows; raise it, or take a model that follows instructions, in "
            "a run of its own (exp_manager.name)"
        )
