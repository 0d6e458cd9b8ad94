"""Live tables: the compiled side."""
