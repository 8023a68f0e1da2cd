"""Search engines: the simulator and real ones, behind one protocol."""
