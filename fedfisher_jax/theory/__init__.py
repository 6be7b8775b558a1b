"""Two-layer ReLU networks as the width grows: the exact full Fisher in sample space, and where a merge's error comes from."""
