"""Checkpoints, cases and hostile inputs shared by tests, benchmarks and integrators."""
