"""These modules run trials in which the supply of files fails after ready.

``sampling`` chooses files and knows what they really hold, ``injection`` makes things fail, ``course`` runs one trial
and ``record`` keeps what was seen. Their observations are of a kind of their own (``harness.model.faults``).
"""
