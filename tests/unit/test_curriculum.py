"""The noise curriculum against the published formula, worked out by hand."""

import pytest

from zs_nemo.curriculum import NoiseCurriculum


def test_it_follows_the_published_formula():
    curriculum = NoiseCurriculum(start_noise=0.25, end_noise=0.5, base=4, max_steps=200)
    assert curriculum.noise_at(0) == 0.25
    assert curriculum.noise_at(100) == pytest.approx(0.25 + (2 - 1) / 3 * 0.25)
    assert curriculum.noise_at(200) == pytest.approx(0.5)


def test_it_never_passes_its_end():
    assert NoiseCurriculum(start_noise=0.0, end_noise=0.5, base=4, max_steps=10).noise_at(99) == 0.5


def test_base_one_is_the_straight_line_that_the_formula_tends_to():
    line = NoiseCurriculum(start_noise=0.0, end_noise=1.0, base=1, max_steps=10)
    nearly = NoiseCurriculum(start_noise=0.0, end_noise=1.0, base=1 + 1e-9, max_steps=10)
    assert line.noise_at(3) == pytest.approx(0.3)
    assert nearly.noise_at(3) == pytest.approx(0.3, abs=1e-6)


def test_a_run_without_steps_stays_at_its_start():
    assert NoiseCurriculum(start_noise=0.1, end_noise=0.5, base=4, max_steps=0).noise_at(0) == 0.1
