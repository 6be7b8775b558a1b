"""What a payload reveals, and what hiding it costs."""
