"""This package says what the entries of a layer's tar mean."""
