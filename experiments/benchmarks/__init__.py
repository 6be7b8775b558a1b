"""Time and memory against other programs; README.md says how they are measured."""
