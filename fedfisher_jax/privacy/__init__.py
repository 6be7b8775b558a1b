"""What a payload reveals, and how to reveal less: secure sums, differentially private noise (docs/silos.md)."""
