"""Joining two reads of a map by key."""
