"""This package knows where verified bytes are, fetches them, and fetches ahead."""
