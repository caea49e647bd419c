"""The head node's shell: clock, streams and timers around the scheduler."""
