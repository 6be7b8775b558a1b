"""Three nodes, one of which sends what it should not."""
