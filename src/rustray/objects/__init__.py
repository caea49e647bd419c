"""The objects of a node: memory that processes share, what is kept of it, and how it travels."""
