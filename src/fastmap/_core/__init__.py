"""The compiled floor: bpf(2), buffers, codecs, and the loops that run without the GIL."""
