"""The product's state machines under virtual time: thousands of seeded schedules in minutes."""
