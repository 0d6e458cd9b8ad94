"""Elements without keys: queues, stacks, Bloom filters."""
