"""Tables of two-layer networks as their width grows, and of what decides the error of a merge."""
