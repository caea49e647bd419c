"""The chaos runner: a real cluster, a nemesis driven by a seed, a history, and a checker.

``python -m chaos --seed 1 --minutes 10`` (with ``tests`` on the path), or ``make chaos``. See
docs/chaos.md.
"""
