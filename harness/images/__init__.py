"""This package treats whole images: names for them, what they hold, and whether their forms agree."""
