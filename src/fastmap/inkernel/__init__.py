"""The in-kernel path: programs assembled for a map, and the routes that run them."""
