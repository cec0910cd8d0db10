"""What a run survives: faults in real processes, and the page that tells of them.

`python -m fedjax_fm.experiments.reliability` prints the tables; with the path of a page
behind it, it writes them there.
"""
