"""The server role: holds slices, applies pushes, closes clocks."""
