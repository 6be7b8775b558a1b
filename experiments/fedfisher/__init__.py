"""Tables of FedFisher and its rivals, in one round and a few (arXiv 2403.12329)."""
