"""SOCI: zTOCs and the index that binds them to an image."""
