"""Long runs, by hand: ``nox -s soak``."""
