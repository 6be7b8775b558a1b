"""Tables of FIPA on functions, differential equations and images (arXiv 2601.13608)."""
