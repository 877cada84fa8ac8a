"""The committed benchmarks: what ``paramserver bench`` measures and prints.

Every comparison is made in one run: the contenders are started side by side, and their samples
are taken in turn, so that a slow minute of the machine hits all of them. Payload GB are 1e9
bytes; push_pull counts both directions; CPU-seconds are user + system of every process that a
contender started.
"""
