"""Images built from real packages by a recipe."""
