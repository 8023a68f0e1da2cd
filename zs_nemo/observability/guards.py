"""Finds out from a step's metrics that training goes wrong. Decides what to do; others do it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from zs_nemo.config.guards import GuardConfig, OnBadUpdate, OnCollapse

PREFIX = "guards/"
"""Of the metrics that say what was found in a step."""


class Verdict(Enum):
    """What is to be done after a step."""

    go_on = "go on"
    roll_back = "return to the last checkpoint"
    stop = "end the run"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong with a step."""

    name: str
    message: str
    """Names the metric, its value, and the setting that it breaks."""
    verdict: Verdict


class Guards:
    """Looks at one step after the other. Keeps how many updates of policy and critic were skipped in a row."""

    def __init__(self, settings: GuardConfig) -> None:
        self._settings = settings
        self._skipped_in_a_row = {"policy": 0, "critic": 0}

    def findings(
        self,
        metrics: Mapping[str, float],
        updates: Sequence[Mapping[str, float]] = (),
        critic_updates: Sequence[Mapping[str, float]] = (),
    ) -> list[Finding]:
        """Return what is wrong with a step. ``updates`` are the policy's in the order in which they were made."""
        return self._bad_updates({"policy": updates, "critic": critic_updates}) + self._collapses(metrics)

    def _bad_updates(self, updates: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Finding]:
        settings, found, skipped = self._settings, [], 0
        # A critic that goes on learning does not excuse a policy that does not.
        longest = dict.fromkeys(updates, 0)
        for group, made in updates.items():
            for update in made:
                is_bad = bool(update.get("num_skipped_updates"))
                skipped += is_bad
                in_a_row = self._skipped_in_a_row[group] = self._skipped_in_a_row[group] + 1 if is_bad else 0
                longest[group] = max(longest[group], in_a_row)
        if not skipped:
            return []
        verdict = {
            OnBadUpdate.skip: Verdict.go_on,
            OnBadUpdate.rollback: Verdict.roll_back,
            OnBadUpdate.stop: Verdict.stop,
        }[settings.on_bad_update]
        message = (
            f"{skipped} updates were not made: their gradient was not finite, or its norm above "
            f"guards.max_grad_norm={settings.max_grad_norm:g}"
        )
        found.append(Finding(name="bad_update", message=message, verdict=verdict))
        group, in_a_row = max(longest.items(), key=lambda item: item[1])
        if verdict is Verdict.go_on and in_a_row >= settings.max_skipped_in_a_row:
            # The run itself keeps the settings that it began with.
            message = (
                f"{in_a_row} updates of the {group} in a row were not made (guards.max_skipped_in_a_row="
                f"{settings.max_skipped_in_a_row}); start another run (exp_manager.name) with a smaller "
                f"{group}.optim.lr, from the last checkpoint if it is any good: policy.model=the folder that "
                "recipes/export.py makes of it"
            )
            found.append(Finding(name="no_progress", message=message, verdict=Verdict.stop))
        return found

    def _collapses(self, metrics: Mapping[str, float]) -> list[Finding]:
        settings = self._settings
        limits = [
            ("max_ratio", "train/ratio_max", settings.max_ratio, 1),
            ("min_entropy", "train/entropy", settings.min_entropy, -1),
            ("min_response_tokens", "rollout/response_tokens", settings.min_response_tokens, -1),
            ("min_searches_per_episode", "rollout/searches_per_episode", settings.min_searches_per_episode, -1),
            ("max_generation_mismatch", "train/generation_mismatch", settings.max_generation_mismatch, 1),
        ]
        verdict = {
            OnCollapse.warn: Verdict.go_on,
            OnCollapse.rollback: Verdict.roll_back,
            OnCollapse.stop: Verdict.stop,
        }[settings.on_collapse]
        found = []
        for setting, metric, limit, sign in limits:
            value = metrics.get(metric)
            if not limit or value is None or sign * (value - limit) <= 0:
                continue
            side = "above" if sign > 0 else "below"
            message = f"{metric} is {value:.4g}, {side} guards.{setting}={limit:g}"
            found.append(Finding(name=setting, message=message, verdict=verdict))
        return found


def gravest(findings: list[Finding]) -> Verdict:
    """Return what is to be done about all of them."""
    verdicts = {finding.verdict for finding in findings}
    return next((verdict for verdict in (Verdict.stop, Verdict.roll_back) if verdict in verdicts), Verdict.go_on)


def found_in(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what was found in a run's rows of metrics: updates that were not made, and steps by finding."""
    parts = ("train/num_skipped_updates", "critic/num_skipped_updates")
    names = sorted({name for row in rows for name in row if name.startswith(PREFIX)})
    return {
        "skipped_updates": sum(row.get(part) or 0 for row in rows for part in parts),
        "findings": {name.removeprefix(PREFIX): [row["step"] for row in rows if row.get(name)] for name in names},
    }
