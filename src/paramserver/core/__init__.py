"""Pure state machines and policies: no gRPC, no threads, no wall clock, no files, no torch."""
