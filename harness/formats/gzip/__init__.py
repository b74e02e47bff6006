"""This package inflates gzip: whole layers, and parts by checkpoints."""
