"""ZeroSearch (arXiv 2505.04588): reinforcement learning of search agents against a simulated search engine."""
