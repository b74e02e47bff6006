"""gzip: inflating whole layers, and random access by checkpoints."""
