"""The noise curriculum: the share of unhelpful search results as a function of the training step."""

from dataclasses import dataclass

from zs_nemo.config.rollout import CurriculumConfig


@dataclass(frozen=True, kw_only=True)
class NoiseCurriculum:
    """p_i = p_s + (b^(i/m) - 1) / (b - 1) * (p_e - p_s), arXiv 2505.04588, equation 1."""

    start_noise: float
    """p_s, the probability at step 0"""
    end_noise: float
    """p_e, the probability at step m"""
    base: float
    """b > 0; 1 stands for its limit, a straight line"""
    max_steps: int
    """m"""

    @classmethod
    def from_config(cls, curriculum: CurriculumConfig, *, max_steps: int) -> "NoiseCurriculum":
        """Build the curriculum that ``curriculum`` describes, for a run of ``max_steps``."""
        return cls(
            start_noise=curriculum.start_noise,
            end_noise=curriculum.end_noise,
            base=curriculum.base,
            max_steps=max_steps,
        )

    def noise_at(self, step: int) -> float:
        """Return P(noisy) at ``step``; steps past m keep p_e, and a run of no steps stays at p_s."""
        progress = min(step / self.max_steps, 1.0) if self.max_steps else 0.0
        growth = progress if self.base == 1 else (self.base**progress - 1) / (self.base - 1)
        return self.start_noise + growth * (self.end_noise - self.start_noise)
