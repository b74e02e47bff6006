"""This package speaks to a registry, pushes to one, and runs one."""
