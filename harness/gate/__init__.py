"""From two sides of trials to verdicts, and from verdicts to an exit code with its reasons."""
