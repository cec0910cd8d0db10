"""What frameworks of federated learning have for foundation models, and where it was seen.

`python -m fedjax_fm.experiments.readiness docs/readiness.md --run` writes the page. What
others have is data, a file a framework in `frameworks`; what we have is a named test each
(`ours.toml`), which the command runs.
"""
