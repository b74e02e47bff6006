"""FUSE: the connection to the kernel and the two file systems served over it."""
