"""One runnable file per experiment. Each builds its system, owns its loop, and is imported by nothing."""
