"""Fine-tuned checkpoints, merged."""
