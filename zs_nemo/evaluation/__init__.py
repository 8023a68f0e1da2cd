"""Greedy and sampled rollouts over questions, scored with intervals."""
