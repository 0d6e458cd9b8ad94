"""The families of map types."""
