"""Columns of keys and values as text and JSON."""
