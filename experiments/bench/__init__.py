"""Seconds a round, beside those of the arithmetic alone and of other libraries.

`fedjax-fm bench engine` and `fedjax-fm bench kernels`. This is no study: it has no run
folder, and `fedjax-fm list` does not show it.
"""
