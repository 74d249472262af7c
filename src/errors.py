"""The errors that UTNet raises on purpose.

A message says what is wrong, where, what was got, what was wanted and what to do. Entry points print the
message of a `UTNetError` as one line and leave with status 2; the traceback is shown with UTNET_TRACE=1.
"""


class UTNetError(Exception):
    """Root of every error that a user can mend."""


class ConfigError(UTNetError):
    """A configuration that a run must not start with."""


class DataError(UTNetError):
    """A data set, frame or annotation that is missing, unreadable or contradicts itself."""


class AssetError(UTNetError):
    """A hand model, checkpoint or weight file that is missing, unsafe or of the wrong shape."""


class ShapeError(UTNetError, ValueError):
    """An array whose shape or dtype is not the documented one."""


class CollectError(UTNetError):
    """A distributed collection that would not hold every sample exactly once."""


class TrainingError(UTNetError):
    """A step that must not reach the weights, or a score that is none: numbers that are not finite."""


class PeerError(UTNetError):
    """Another rank failed and has said why; this rank only leaves."""


class LostRankError(UTNetError):
    """Another rank ended, is stopped or is stuck."""
