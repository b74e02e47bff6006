"""This package builds images from real packages by a recipe."""
