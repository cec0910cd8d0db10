"""Errors around a run that are not bugs.

Imports nothing.
"""


class UserError(Exception):
    """An error that the user can mend; the command prints it as one line."""


class UsageError(UserError):
    """A name or value that does not exist or makes no sense; says which do."""


class RunFolderError(UserError):
    """A run folder that exists, is missing, is damaged or cannot be written."""


class CheckpointError(UserError):
    """A checkpoint that cannot be used or written."""


class OtherRun(CheckpointError):
    """A checkpoint of another configuration."""


class DamagedCheckpoint(CheckpointError):
    """Files that are missing, cut short or changed."""


class Interrupted(Exception):
    """The user stopped a run; what was done is on disk."""
