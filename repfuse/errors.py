"""The errors that repfuse raises on purpose; each one carries a sentence for a person and an exit code."""

_LONGEST = 1000
"""Characters of a sentence: a name in a model may be of any length."""


class RepfuseError(Exception):
    """Base of every error that repfuse raises on purpose. Its text says what is wrong, where, and what to do."""

    exit_code = 2

    def __init__(self, text: str) -> None:
        super().__init__("\n".join(map(printable, text.split("\n"))))


class BadInputError(RepfuseError):
    """A file, a model or a value that the user handed over cannot be used; told in one line, not too long."""

    def __init__(self, text: str) -> None:
        line, half = printable(text), _LONGEST // 2
        super().__init__(line if len(line) <= _LONGEST else f"{line[:half]} ... {line[-half:]}")


class VerificationError(RepfuseError):
    """The fused model does not compute what the original computes; nothing was written."""

    exit_code = 1


class SpeedupError(RepfuseError):
    """A model is not as much faster than another one as was required."""

    exit_code = 4


def printable(text: str) -> str:
    """A text with what cannot be printed written as in Python: a terminal would obey what is in a model's names."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
