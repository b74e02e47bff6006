"""Verified bytes: where they are, how they are fetched, and what is fetched ahead."""
