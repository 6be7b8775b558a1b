"""Five nodes with uneven digits, merged by Fisher information."""
