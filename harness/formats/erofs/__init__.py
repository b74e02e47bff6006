"""This package makes, reads and indexes EROFS: metadata over lazily served layers."""
