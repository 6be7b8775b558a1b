"""Tables of FedFish against FedAvg over rounds (arXiv 2311.10291)."""
