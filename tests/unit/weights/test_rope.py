import math
from pathlib import Path

import pytest

from zs_nemo.weights.config_json import ConfigJson
from zs_nemo.weights.rope import Llama3Scaling, Rope, read_rope

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read(**values) -> Rope:
    return read_rope(ConfigJson(Path("a_folder"), {"max_position_embeddings": 131072, **values}))


def by_wavelength(theta: float, pair: int, head_dim: int, rule: dict) -> float:
    """Llama 3's rule as its report words it: by wavelengths, one frequency at a time, in Python's floats."""
    frequency = theta ** (-2 * pair / head_dim)
    wavelength, original = 2 * math.pi / frequency, rule["original_max_position_embeddings"]
    if wavelength < original / rule["high_freq_factor"]:
        return frequency
    if wavelength > original / rule["low_freq_factor"]:
        return frequency / rule["factor"]
    smooth = (original / wavelength - rule["low_freq_factor"]) / (rule["high_freq_factor"] - rule["low_freq_factor"])
    return (1 - smooth) * frequency / rule["factor"] + smooth * frequency


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"factor": 8.0},
        {"low_freq_factor": 0.5, "high_freq_factor": 16.0},
        {"original_max_position_embeddings": 512, "low_freq_factor": 2.0},
    ],
)
def test_frequencies_follow_llama_3_s_rule_with_all_of_its_numbers(changes):
    rule = {**LLAMA3, **changes}
    frequencies = read(rope_scaling=rule, rope_theta=500000.0).inverse_frequencies(128)
    expected = [by_wavelength(500000.0, pair, 128, rule) for pair in range(64)]
    assert frequencies.tolist() == pytest.approx(expected, rel=1e-6)
    plain = read(rope_theta=500000.0).inverse_frequencies(128)
    kept, divided = frequencies == plain, (frequencies * rule["factor"]).isclose(plain, rtol=1e-6)
    assert kept.any() and divided.any() and (~kept & ~divided).any(), "not every band of the rule is seen"


def test_without_scaling_the_frequencies_are_powers_of_the_base():
    assert read(rope_theta=10000.0).inverse_frequencies(8).tolist() == pytest.approx([1.0, 0.1, 0.01, 0.001])
    assert read() == Rope(theta=10000.0, scaling=None)


def test_settings_are_read_as_transformers_4_and_5_write_them():
    old = read(rope_theta=5000.0, rope_scaling=LLAMA3)
    assert old == read(rope_parameters={**LLAMA3, "rope_theta": 5000.0})
    assert old.scaling == Llama3Scaling(
        factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    )
    assert read(rope_theta=5000.0, rope_scaling=None) == Rope(theta=5000.0, scaling=None)
    assert read(rope_parameters={"rope_type": "default", "rope_theta": 7.0}) == Rope(theta=7.0, scaling=None)


def test_an_original_length_that_is_not_given_is_the_model_s():
    rule = {key: value for key, value in LLAMA3.items() if key != "original_max_position_embeddings"}
    scaling = read(rope_scaling=rule).scaling
    assert scaling is not None and scaling.original_max_position_embeddings == 131072


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope settings .*'linear'.* 'default' or 'llama3'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "the same for all layers"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "add factor, low_freq_factor and high_freq_factor"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "0 < low_freq_factor < high_freq_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ],
)
def test_other_rules_are_refused_with_what_the_folder_has(values, message):
    with pytest.raises(ValueError, match=f"model folder a_folder has .*{message}"):
        read(**values)
