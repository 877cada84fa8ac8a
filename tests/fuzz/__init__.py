"""Garbage for everything that reads bytes of others: ``python -m tests.fuzz --seconds 300``."""
