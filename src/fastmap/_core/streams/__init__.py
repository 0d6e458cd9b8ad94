"""Ring buffers, user ring buffers, perf buffers."""
