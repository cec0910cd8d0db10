"""What a run survives: faults in real processes, and the page that tells of them.

    python -m fedjax_fm.experiments.reliability            # prints the tables
    python -m fedjax_fm.experiments.reliability PAGE       # writes them into a page
"""
