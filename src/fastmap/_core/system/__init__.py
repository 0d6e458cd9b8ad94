"""bpf(2), descriptors, memory, mounts, programs."""
