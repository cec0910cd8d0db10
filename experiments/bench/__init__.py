"""Seconds a round against the arithmetic's own floor and against other libraries.

`fedjax-fm bench engine`.

Not a study: it has no run folder and is not listed by `fedjax-fm list`.
"""
