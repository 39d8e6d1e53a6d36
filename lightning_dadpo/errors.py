"""The project's exceptions: one tree, whose leaves say whose mistake it was.

`DadpoError` is everything that a person can put right. The command line prints its message as one line and
leaves with status 2. Whatever is not a `DadpoError` is a defect of ours and keeps its traceback.
"""

__all__ = ["DadpoError", "ConfigError", "DataError", "ArtifactError", "AuditError"]


class DadpoError(Exception):
    """A mistake that the person at the keyboard can mend; the message names the place and what was expected."""


class ConfigError(DadpoError, ValueError):
    """A flag, a YAML key or an argument is missing, out of range or contradicts another one."""


class DataError(DadpoError, ValueError):
    """A row, a file or a model folder is not what it should be; the message begins with the place."""


class ArtifactError(DadpoError, RuntimeError):
    """A stage's folder is incomplete, locked by another process or made from something else."""


class AuditError(DadpoError, RuntimeError):
    """Two numbers that must agree do not: the run stops before it trains on them (METHOD: step-0, audit)."""
