"""Frames, channels, retries: the only place that knows bytes."""
