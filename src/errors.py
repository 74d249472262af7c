"""The errors that UTNet raises on purpose.

A message says what is wrong, where, what was got, what was wanted and what to do. Entry points print the
message of a `UTNetError` as one line and leave with status 2; with UTNET_TRACE=1 they show the traceback.
"""


def plain_text(text: str) -> str:
    """Text as a terminal may show it: whatever is not printable is spelled out.

    Names come from other people's files. In one of them an escape code would move the cursor, recolour the
    screen or hide what stands before it, and a line break would make two lines of one.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _spelled(c) for c in text)


def _spelled(character: str) -> str:
    """`\\x1b`; a byte that was no text when it was read, as that byte."""
    number = ord(character)
    return f"\\x{number - 0xDC00:02x}" if 0xDC80 <= number <= 0xDCFF else ascii(character)[1:-1]


class UTNetError(Exception):
    """Root of every error that a user can mend; each argument is a line."""

    def __str__(self) -> str:
        return "\n".join(plain_text(str(argument)) for argument in self.args)


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
