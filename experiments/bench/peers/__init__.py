"""What other libraries do with the same arrays.

Scripts that stand alone, each run by the python of its own virtual environment, as
`with_LIBRARY.py WORKLOAD DATA.npz RESULT.npz` (see protocol.py).

They import each other by bare names, since a script's own folder is on its path.
"""
