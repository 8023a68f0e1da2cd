"""``manifest.json`` of an evaluation run: the settings to repeat it with, and what every evaluation was made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zs_nemo.config.evaluate import EvaluateRecipeConfig
from zs_nemo.config.remote_search import RetrieverSearchConfig, WebSearchConfig
from zs_nemo.config.search import Bm25SearchConfig, NoSearchConfig, SearchConfig, SimulatedSearchConfig
from zs_nemo.evaluation.manifest import EvaluationManifest, engine_settings
from zs_nemo.observability.config_file import redact
from zs_nemo.observability.files import read_json, write_json

FORMAT = 1
REPEATED_SUFFIX = "_repeated"
_GROUPS = ("seed", "api", "policy", "endpoint", "generation", "rollout", "search", "data", "evaluate")
"""Settings that an evaluation depends on; where and under what name it runs is for who repeats it to say."""
_CHOSEN = ("cluster", "curriculum")
"""Groups of which the command line may choose a file."""
_KINDS: dict[str, type[SearchConfig]] = {
    "simulated": SimulatedSearchConfig,
    "bm25": Bm25SearchConfig,
    "retriever": RetrieverSearchConfig,
    "web": WebSearchConfig,
    "none": NoSearchConfig,
}
"""As the group ``search`` has them."""


@dataclass(frozen=True, kw_only=True)
class FrozenRun:
    """What ``manifest.json`` holds."""

    name: str
    """Of the run."""
    search_kind: str
    settings: dict[str, Any]
    evaluations: dict[str, EvaluationManifest]
    """By the evaluation's name."""

    @classmethod
    def of(cls, cfg: EvaluateRecipeConfig, evaluations: Mapping[str, EvaluationManifest]) -> "FrozenRun":
        """Freeze a run."""
        whole = OmegaConf.to_container(OmegaConf.structured(cfg), resolve=True, enum_to_str=True)
        assert isinstance(whole, dict)
        return cls(
            name=cfg.exp_manager.name,
            search_kind=next(kind for kind, settings in _KINDS.items() if type(cfg.search) is settings),
            settings=redact({group: whole[group] for group in _GROUPS}),
            evaluations=dict(evaluations),
        )

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        evaluations = {name: manifest.to_json() for name, manifest in self.evaluations.items()}
        write_json(
            path,
            {
                "format": FORMAT,
                "recipe": "evaluate",
                "name": self.name,
                "search": self.search_kind,
                "evaluations": evaluations,
                "settings": self.settings,
            },
        )

    @classmethod
    def read(cls, path: Path) -> "FrozenRun":
        """Read what ``write`` wrote; raise ``ValueError`` for anything else."""
        if not path.is_file():
            raise ValueError(f"manifest={str(path)!r} is no file; give manifest.json of an evaluation's run directory")
        try:
            values = read_json(path, None)
        except ValueError as error:
            raise ValueError(f"manifest={str(path)!r} is no JSON document ({error}); take a whole copy") from error
        known = isinstance(values, dict) and values.get("recipe") == "evaluate" and values.get("format") == FORMAT
        if not known or values.get("search") not in _KINDS:
            raise ValueError(
                f"manifest={str(path)!r} is no manifest of recipes/evaluate.py of format {FORMAT}; give manifest.json "
                "of an evaluation's run directory"
            )
        return cls(
            name=values["name"],
            search_kind=values["search"],
            settings=values["settings"],
            evaluations={
                name: EvaluationManifest.from_json(each, f"{path}, evaluations.{name}")
                for name, each in values["evaluations"].items()
            },
        )

    def check_repeated_by(self, evaluations: Mapping[str, EvaluationManifest]) -> list[str]:
        """Raise ``ValueError``, naming what differs, unless every one of these repeats one of this run.

        Returns what may differ and does: versions of packages.
        """
        if unknown := sorted(evaluations.keys() - self.evaluations.keys()):
            raise ValueError(
                f"the manifest of {self.name!r} has no evaluation {unknown[0]}, it has "
                f"{', '.join(sorted(self.evaluations))}; set evaluate.methods and search accordingly"
            )
        told: dict[str, None] = {}
        for name, manifest in evaluations.items():
            frozen = self._with_later_settings(self.evaluations[name])
            manifest.check_repeats(frozen)
            told |= dict.fromkeys(line for line in frozen.differences(manifest) if line.startswith("versions"))
        return list(told)

    def _with_later_settings(self, manifest: EvaluationManifest) -> EvaluationManifest:
        """Add what there was no setting for yet, as it is by default: the evaluation behaved like that."""
        if not manifest.engine_settings:
            return manifest
        later = engine_settings(_KINDS[self.search_kind]())
        return replace(manifest, engine_settings=later | manifest.engine_settings)


def with_manifest(composed: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Return the settings of ``composed.manifest`` with the command line's ``overrides`` over them, if one is named.

    Raises ``ValueError`` for a file that is no manifest, and for an override that cannot be taken.
    """
    if not composed.manifest:
        return composed
    frozen = FrozenRun.read(Path(composed.manifest).expanduser())
    own = [each for each in overrides if not each.startswith("manifest=")]
    if chosen := [each for each in own if each.partition("=")[0].lstrip("+") in ("policy", "search", "experiment")]:
        raise ValueError(
            f"{chosen[0]!r} chooses a group of settings, and manifest={composed.manifest} has settled them; set single "
            "ones (policy.model=FOLDER), or evaluate without a manifest"
        )
    base = OmegaConf.structured(EvaluateRecipeConfig(search=_KINDS[frozen.search_kind]()))
    # Groups that the manifest says nothing of are as composed: overridden or chosen on the command line, or by default.
    rest = {name: value for name, value in composed.items() if name not in _GROUPS}
    values = [each for each in own if not each.startswith("hydra") and each.partition("=")[0] not in _CHOSEN]
    named = any(each.startswith("exp_manager.name=") for each in own)
    try:
        merged = OmegaConf.merge(
            base,
            rest,
            frozen.settings,
            {} if named else {"exp_manager": {"name": frozen.name + REPEATED_SUFFIX}},
            OmegaConf.from_dotlist([each.lstrip("+") for each in values]),
        )
    except OmegaConfBaseException as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"manifest={composed.manifest}: its settings do not fit this version or the command line ({reason}); leave "
            "the override out, or take the version that the manifest names"
        ) from error
    assert isinstance(merged, DictConfig)
    return merged
