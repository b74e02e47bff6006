"""Building the real engines."""
