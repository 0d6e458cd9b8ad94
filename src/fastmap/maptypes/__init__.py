"""The classes of map types, what they share, and how maps are made and opened."""
