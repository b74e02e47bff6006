"""This package turns served bytes into a mounted root file system, and hands over to the kernel."""
