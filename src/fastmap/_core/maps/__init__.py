"""Element, batch and in-kernel loops over one map."""
