"""Every error that chutes raises on purpose.

One tree, one base class. An error is a sentence for the person who will read it: what was wrong, where,
and, in `fix`, what to type next. The command line prints both and exits with `exit_code`; the control
API sends `status` and the same two sentences.

The names of the published SDK (`InvalidPath`, `DuplicatePath`, `AuthenticationRequired`,
`NotConfigured`, `StillProvisioning`) keep their published builtin bases, so `except ValueError` in an
existing chute file goes on working.
"""

from __future__ import annotations


class ChutesError(Exception):
    """Base of every error raised on purpose.

    Args:
        message: what is wrong and where, as one sentence.
        fix: what the reader can do about it; may be empty when the message says it all.
    """

    exit_code = 1
    """1: the thing asked for failed. 2: it was asked for wrongly."""
    status = 500
    """HTTP status when the error crosses the control API."""

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


class UsageError(ChutesError):
    """The command or the chute file is wrong; nothing was started."""

    exit_code = 2
    status = 400


class BadReference(UsageError):
    """A `module:attribute` reference that does not lead to a chute."""


class InvalidSpec(UsageError, ValueError):
    """A field of a chute has a value that cannot be served."""


class InvalidPath(UsageError, ValueError):
    """A cord's path breaks the path rules."""


class DuplicatePath(UsageError, ValueError):
    """Two cords of one chute share an internal path."""


class AuthenticationRequired(ChutesError, RuntimeError):
    """The platform asks for a key and none, or a wrong one, was sent."""

    status = 401


class NotConfigured(ChutesError, RuntimeError):
    """A setting that this operation needs is absent."""


class StillProvisioning(ChutesError, RuntimeError):
    """The chute exists but no instance of it is ready yet."""

    status = 503


class NotFound(ChutesError):
    """No chute, key, instance or engine of that name."""

    status = 404


class AlreadyExists(ChutesError):
    """The name is taken."""

    status = 409


class PlatformUnreachable(ChutesError):
    """No platform answers at the configured address."""

    status = 503


class ModelError(ChutesError):
    """Model files cannot be found, fetched or understood."""

    status = 400


class DoesNotFit(ChutesError):
    """The machine lacks the memory or the devices that the model needs."""

    status = 400


class CannotPlan(ChutesError):
    """A question that no plan answers: an absurd number, a format or a GPU type that nobody knows."""

    status = 400


class EngineEnvironmentError(ChutesError):
    """An engine's virtual environment cannot be made or used."""


class ContainerError(ChutesError):
    """No container engine works here, or the one that does lacks what it needs."""


class BuildFailed(ContainerError):
    """An image could not be built or fetched; trying again changes nothing."""

    status = 400


class EngineFailed(ChutesError):
    """A model server did not start, or ended by itself."""


class PortTaken(ChutesError):
    """Another program listens where we would."""
