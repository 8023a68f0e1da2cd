"""The multi-turn episode of a policy with a search engine, and packing of its trajectories."""
