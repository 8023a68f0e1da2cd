"""A step of a run as a discrete-event simulation: no process is started, nothing is computed, only time passes."""
