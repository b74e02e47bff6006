"""Trials in which the supply of files fails after ready: what is put in, what is read, what is recorded.

``sampling`` chooses files and knows what they really hold, ``injection`` makes things fail, ``course`` runs one trial
and ``record`` keeps what came of it. Their observations are of a kind of their own (``harness.model.faults``).
"""
