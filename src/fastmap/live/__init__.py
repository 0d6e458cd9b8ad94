"""Live tables: counters by key that user space reads from memory."""
