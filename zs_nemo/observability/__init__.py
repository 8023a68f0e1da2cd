"""Metrics, timers, loggers, the live display and the run report."""
