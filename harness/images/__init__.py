"""Whole images: names for them, what they hold, and whether their forms agree."""
