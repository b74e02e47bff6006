"""Registries: speaking to one, pushing to one, and running one."""
