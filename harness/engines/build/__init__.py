"""This package builds the real engines' programs from pinned Go modules into the user's cache directory."""
