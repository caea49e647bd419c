"""The worker node: its pure core, its shell, and the executor processes that run user code."""
