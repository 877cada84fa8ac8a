"""The command line: reads flags and the environment into configuration values."""
