"""Locks, semaphores, events and queues of the whole cluster: a pure core beside the scheduler."""
