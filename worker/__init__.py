"""The worker role: the client API."""
