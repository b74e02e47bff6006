"""The real engines' programs, built from pinned Go modules into the user's cache directory."""
