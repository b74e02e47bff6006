"""tar: what the entries of a layer's archive say."""
