"""This package holds the FUSE connection to the kernel and the two file systems served over it."""
