"""Which implementation of an op runs, and why that one."""
