"""This package turns two sides of trials into verdicts, and verdicts into an exit code with its reasons."""
