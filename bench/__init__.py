"""fastmap against C: the same work on the same map, measured in the same run."""
