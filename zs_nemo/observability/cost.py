"""What a run and its searches cost: counts and seconds times prices, in US dollars. Pure functions.

Owns the ``cost`` of ``report.json``, and the arithmetic of docs/cost.md. What was counted comes from elsewhere.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from zs_nemo.config.cost import CostConfig

SIMULATOR = "simulator"
"""The role whose engines write simulated documents."""
POLICY, JUDGE = "policy", "judge"
"""The roles of a policy and of a judge behind endpoints that are not the run's own."""
BOUGHT_ENGINES = frozenset({"web"})
"""Search engines that are paid by the search."""

Counts = Mapping[str, float]
_ROLE_COUNTS = (
    "held_gpu_s",
    "busy_gpu_s",
    "held_core_s",
    "busy_core_s",
    "requests",
    "prompt_tokens",
    "completion_tokens",
)


@dataclass(frozen=True, kw_only=True)
class PublishedCost:
    """What arXiv 2505.04588 gives for one training run: $586.70 for Google's results, $70.80 for a 14B simulator.

    Published are the searches, the GPUs and the two sums; the prices and the hours here are ones that give these sums.
    """

    num_searches: int = 64_000
    usd_per_1000_searches: float = 275 / 30
    """As a plan of 30,000 searches for $275 comes to."""
    num_gpus: int = 4
    run_hours: float = 12.0
    usd_per_gpu_hour: float = 1.475
    """Of an A100. The sum fixes only the product of hours and price."""

    @property
    def searches_usd(self) -> float:
        """Return the price of all searches, bought: $586.67."""
        return bought_usd(self.num_searches, self.usd_per_1000_searches)

    @property
    def simulator_usd(self) -> float:
        """Return the price of the simulator's GPUs for the length of the run: $70.80."""
        return hours_usd(self.num_gpus * self.run_hours * 3600, self.usd_per_gpu_hour)


PUBLISHED = PublishedCost()


@dataclass(frozen=True, kw_only=True)
class SimulatorPlan:
    """What simulated searches cost on GPUs held for them alone, worked out before a run. An upper bound.

    The run is taken to wait for every second of the simulator's work, as if nothing else went on meanwhile.
    """

    num_searches: int
    completion_tokens: float
    """Written for one search, all of its documents."""
    tokens_per_gpu_s: float
    """Written by one GPU that has enough requests in flight, reading their prompts included."""
    num_gpus: int
    run_hours: float
    """Length of the run if the simulator answered at once."""
    usd_per_gpu_hour: float
    reused_share: float = 0.0
    """Searches that cost nothing: equal to one in flight, whose answer they share, or to one whose answer was kept."""
    num_runs: int = 1
    """Runs that use the simulator at the same time, each with ``num_searches``."""

    def __post_init__(self) -> None:
        if min(self.num_searches, self.completion_tokens, self.run_hours, self.usd_per_gpu_hour) < 0:
            raise ValueError(f"{self} holds a negative number")
        if self.tokens_per_gpu_s <= 0 or self.num_gpus < 1 or self.num_runs < 1 or not 0 <= self.reused_share <= 1:
            raise ValueError(
                f"{self}: tokens_per_gpu_s must be positive, num_gpus and num_runs at least 1, reused_share in [0, 1]"
            )

    @property
    def busy_gpu_hours(self) -> float:
        """Return the GPU-hours of writing, for all runs together."""
        tokens = self.num_runs * self.num_searches * (1 - self.reused_share) * self.completion_tokens
        return tokens / self.tokens_per_gpu_s / 3600

    @property
    def held_gpu_hours(self) -> float:
        """Return the GPU-hours that are paid: the runs' own length, and all waits for the simulator."""
        return self.num_gpus * self.run_hours + self.busy_gpu_hours

    @property
    def usd(self) -> float:
        """Return the price of what is held, for one run."""
        return hours_usd(3600 * self.held_gpu_hours, self.usd_per_gpu_hour) / self.num_runs

    @property
    def busy_usd(self) -> float:
        """Return the price of the work alone, for one run: what the simulator costs on GPUs held for something else."""
        return hours_usd(3600 * self.busy_gpu_hours, self.usd_per_gpu_hour) / self.num_runs


def bought_usd(num_searches: float, usd_per_1000_searches: float) -> float:
    """Return the price of searches at an engine that is paid by the search."""
    return num_searches * usd_per_1000_searches / 1000


def hours_usd(seconds: float, usd_per_hour: float) -> float:
    """Return the price of GPU- or core-seconds."""
    return seconds / 3600 * usd_per_hour


def tokens_usd(counts: Counts, prices: CostConfig) -> float:
    """Return the price of a model's tokens at an endpoint that is paid by the token."""
    return (
        counts.get("prompt_tokens", 0) * prices.usd_per_million_prompt_tokens
        + counts.get("completion_tokens", 0) * prices.usd_per_million_completion_tokens
    ) / 1e6


def account(
    engines: Mapping[str, Counts],
    sessions: Iterable[Mapping[str, Counts]],
    prices: CostConfig,
    *,
    simulated: Collection[str],
) -> dict[str, Any]:
    """Return the ``cost`` of a report.

    ``engines`` are the counts of every search engine, of which ``simulated`` names the simulated ones; ``sessions`` are
    the roles of every session of the run, each with what ``cluster.role_accounts`` counts. A role with requests that
    holds nothing is a model behind an endpoint that is not the run's own, and paid by the token. A sum is None when a
    part of it is not known: roles that were never recorded, a price of 0, or tokens that a server does not count.
    """
    roles = _roles(sessions, prices)
    asked = {name: counts for name, counts in engines.items() if name in simulated}
    endpoint = 0.0 if SIMULATOR in roles else _endpoint_usd(_summed(asked.values()), prices) if roles else None
    num_bought = sum(engines[name].get("calls", 0) for name in sorted(engines.keys() & BOUGHT_ENGINES))
    bought = _known(bought_usd(num_bought, prices.usd_per_1000_searches), num_bought, prices.usd_per_1000_searches)
    parts = [endpoint, bought, *(role["usd"] for role in roles.values())]
    return {
        "prices": asdict(prices),
        "searches": {name: counts.get("calls", 0) for name, counts in engines.items()},
        "simulator_tokens": {
            name: counts.get("prompt_tokens", 0) + counts.get("completion_tokens", 0) for name, counts in asked.items()
        },
        "roles": roles,
        "endpoint_usd": endpoint,
        "bought": {"searches": num_bought, "usd": bought},
        "run_usd": None if None in parts else sum(parts),
        "simulated": _simulated(_summed(asked.values()), roles.get(SIMULATOR), endpoint, prices),
    }


def simulator_account(counts: Counts, roles: Mapping[str, Counts], prices: CostConfig) -> dict[str, Any] | None:
    """Return what a simulator by itself cost, as the ``simulated`` of ``account``; None without a search.

    ``counts`` are those of its searches. ``roles`` has what its engines held and did; empty for one behind an endpoint
    that is not ours, which is paid by the token.
    """
    endpoint = 0.0 if roles else _endpoint_usd(counts, prices)
    return _simulated(counts, _roles([roles], prices).get(SIMULATOR), endpoint, prices)


def _roles(sessions: Iterable[Mapping[str, Counts]], prices: CostConfig) -> dict[str, dict[str, Any]]:
    by_role: dict[str, list[Counts]] = {}
    for session in sessions:
        for name, counts in session.items():
            by_role.setdefault(name, []).append(counts)
    return {name: _priced(_summed(parts), prices) for name, parts in by_role.items()}


def _priced(counts: Counts, prices: CostConfig) -> dict[str, Any]:
    row: dict[str, Any] = {name: counts.get(name, 0) for name in _ROLE_COUNTS}
    held = row["held_gpu_s"] + row["held_core_s"]
    row["busy_share"] = (row["busy_gpu_s"] + row["busy_core_s"]) / held if held else None
    if row["requests"] and not held:
        row["usd"] = row["busy_usd"] = _endpoint_usd(counts, prices)
        return row
    for kind, name in (("held", "usd"), ("busy", "busy_usd")):
        gpu_s, core_s = row[f"{kind}_gpu_s"], row[f"{kind}_core_s"]
        gpus = _known(hours_usd(gpu_s, prices.usd_per_gpu_hour), gpu_s, prices.usd_per_gpu_hour)
        cores = _known(hours_usd(core_s, prices.usd_per_core_hour), core_s, prices.usd_per_core_hour)
        row[name] = None if gpus is None or cores is None else gpus + cores
    return row


def _endpoint_usd(counts: Counts, prices: CostConfig) -> float | None:
    """Return the price of what an endpoint has read and written; None too where it was asked and counted nothing."""
    tokens = counts.get("prompt_tokens", 0) + counts.get("completion_tokens", 0)
    asked = counts.get("requests", counts.get("calls", 0) - counts.get("shared", 0) - counts.get("cached", 0))
    if asked > 0 and not tokens:
        return None
    price = prices.usd_per_million_prompt_tokens + prices.usd_per_million_completion_tokens
    return _known(tokens_usd(counts, prices), tokens, price)


def _simulated(
    counts: Counts, role: Mapping[str, Any] | None, endpoint: float | None, prices: CostConfig
) -> dict[str, Any] | None:
    """Return the simulated searches beside the same ones bought; None without any.

    ``idle_usd`` is what held GPUs cost while the simulator wrote nothing: the most that fewer of them could save.
    ``reused_usd`` is what answers that were shared or kept would have cost in work.
    """
    searches = counts.get("calls", 0)
    if not searches:
        return None
    usd, work = (endpoint, endpoint) if role is None else (role["usd"], role["busy_usd"])
    price = prices.usd_per_1000_searches
    bought = _known(bought_usd(searches, price), searches, price)
    reused = counts.get("shared", 0) + counts.get("cached", 0)
    return {
        "searches": searches,
        "usd": usd,
        "usd_per_1000": _per_1000(usd, searches),
        "busy_usd_per_1000": _per_1000(work, searches),
        "idle_usd": None if usd is None or work is None else usd - work,
        "reused_searches": reused,
        "reused_usd": None if work is None or reused >= searches else work * reused / (searches - reused),
        "bought_usd": bought,
        "bought_usd_per_1000": _per_1000(bought, searches),
        "saved_share": None if usd is None or not bought else 1 - usd / bought,
    }


def _known(usd: float, amount: float, price: float) -> float | None:
    """Return ``usd``, or None when something was used that has no price."""
    return None if amount and not price else usd


def _per_1000(usd: float | None, searches: float) -> float | None:
    return None if usd is None else 1000 * usd / searches


def _summed(parts: Iterable[Counts]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0) + value
    return total
