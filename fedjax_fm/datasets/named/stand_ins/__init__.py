"""Made-up rows in the schemas of the hub, for where the real ones are out of reach.

A generator gets a `Request` and returns rows as the hub would give them, so that the
same parser reads both. Its text is the package's own real text or a small grammar, its
answers can be learnt, and nothing but the request decides what comes out.
"""
