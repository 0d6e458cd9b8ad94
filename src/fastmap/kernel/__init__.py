"""What the kernel has: capabilities, bpffs, tokens, the maps and programs that are there."""
