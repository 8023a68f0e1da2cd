"""Other questions in place of those whose samples were all equally good."""

from collections.abc import Callable, Sequence

from zs_nemo.types.trajectory import TrajectoryGroup

CollectMore = Callable[[int, int], list[TrajectoryGroup]]
"""Called with the number of the round, from 1, and how many groups are missing; may return fewer."""


def resample_zero_variance(
    groups: Sequence[TrajectoryGroup], collect_more: CollectMore, *, max_rounds: int
) -> tuple[list[TrajectoryGroup], list[TrajectoryGroup]]:
    """Return (as many groups as were given, with variance where it could be had; the groups that were replaced).

    The rounds are bounded, and what they did not replace stays (cf. dynamic sampling in DAPO, arXiv 2503.14476, which
    goes on until the batch is full): a step on questions that are all too hard or all too easy ends, too.
    """
    telling = [group for group in groups if group.has_variance]
    flat = [group for group in groups if not group.has_variance]
    for round_number in range(1, max_rounds + 1):
        missing = len(groups) - len(telling)
        if missing == 0:
            break
        more = collect_more(round_number, missing)
        telling += [group for group in more if group.has_variance]
        flat += [group for group in more if not group.has_variance]
    missing = max(0, len(groups) - len(telling))
    return telling + flat[:missing], flat[missing:]
