"""The scheduler role: membership, slice map, data shards, job state."""
