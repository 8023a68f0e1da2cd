"""Keyed randomness."""

import numpy as np

from zs_nemo.types.keys import SampleKey


def test_every_part_of_the_key_and_the_purpose_change_the_draw():
    base = {"run_seed": 1, "step": 1, "prompt": 1, "member": 1, "turn": 1}
    seeds = {SampleKey(**base).seed("noise"), SampleKey(**base).seed("sampling")}
    for name in base:
        seeds.add(SampleKey(**(base | {name: 2})).seed("noise"))
    assert len(seeds) == 7


def test_the_same_key_gives_the_same_draw_in_every_process():
    assert SampleKey(run_seed=1, step=2, prompt=3, member=4).seed("noise") == 1398119834


def test_draws_are_uniform():
    draws = [SampleKey(run_seed=0, step=s, prompt=p, member=0).uniform("noise") for s in range(40) for p in range(50)]
    assert abs(np.mean(draws) - 0.5) < 0.02 and abs(np.mean(np.array(draws) < 0.1) - 0.1) < 0.02
