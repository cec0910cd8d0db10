"""What can go wrong around a run without being a bug. Imports nothing."""


class UserError(Exception):
    """Something that the user can mend; the command says it in one line."""


class UsageError(UserError):
    """What the user asked for does not exist or makes no sense; the message says what does."""


class RunFolderError(UserError):
    """A run folder that exists, is missing, cannot be written or holds something unexpected."""


class CheckpointError(UserError):
    """A checkpoint that cannot be used or written."""


class OtherRun(CheckpointError):
    """A checkpoint of another configuration."""


class DamagedCheckpoint(CheckpointError):
    """Files that are missing, cut short or changed."""


class Interrupted(Exception):
    """The user stopped a run; what was done is on disk."""
