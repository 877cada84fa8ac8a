"""Schemes side by side: run files are read, summed up, put into a table and drawn."""
