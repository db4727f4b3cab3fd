"""The errors that repfuse raises on purpose; each one carries a sentence for a person and an exit code."""


class RepfuseError(Exception):
    """Base of every error that repfuse raises on purpose. Its text says what is wrong, where, and what to do."""

    exit_code = 2


class BadInputError(RepfuseError):
    """A file, a model or a value that the user handed over cannot be used."""


class VerificationError(RepfuseError):
    """The fused model does not compute what the original computes; nothing was written."""

    exit_code = 1


class SpeedupError(RepfuseError):
    """A model is not as much faster than another one as was required."""

    exit_code = 4
