"""EROFS: metadata over lazily served layers, its writer, reader and index."""
