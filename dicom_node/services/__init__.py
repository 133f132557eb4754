"""One use case per file; each owns its transactions."""
