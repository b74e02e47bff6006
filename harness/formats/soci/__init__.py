"""This package makes and reads zTOCs and the SOCI index that binds them to an image."""
