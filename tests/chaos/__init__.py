"""Real jobs of real processes under seeded schedules of faults: ``python -m tests.chaos``."""
