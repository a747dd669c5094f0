"""Every exception that tiefsee raises, in one tree.

    TiefseeError
    ├── ConfigError (ValueError)        a setting or a config.json that cannot be used
    │   └── UnsupportedModel            a model outside the family, refused by name
    ├── ModelNotFound (FileNotFoundError)   no such folder, file, preset or hub id
    ├── CheckpointError                 tensors missing, left over, mis-shaped, truncated
    ├── RecordingError                  a parity recording that cannot be read, written or used here
    ├── LayoutError                     cached rows that another layout cannot hold
    ├── MoveError                       a request that was not handed over; it is still where it was
    │   ├── MoveDamaged                 bytes cut off or altered on the way: send them again
    │   ├── MoveMismatch                of another model or another version of the form: never to be sent there
    │   ├── MovedAlready                it came twice: it runs there, so let go of it here
    │   └── NoRoom                      no blocks, rings or tokens for it now: another time or place
    ├── DeviceError (RuntimeError)      a device that is absent or cannot do it
    │   ├── OutOfMemory (MemoryError)   by how much, and what would fit
    │   ├── NoToken                     logits that no token can be drawn from
    │   └── EngineDied                  the engine process is gone, and what it was doing with it
    ├── WireError                       bytes between front and engine process that mean nothing
    └── RequestError (ValueError)       one request cannot be served; carries an HTTP status
        ├── PromptTooLong
        ├── InvalidSampling
        ├── InvalidToken
        ├── DeadlineExceeded (TimeoutError)   not done in the time that the request gave
        └── Unavailable                 starting, restarting, draining or failed; may say when to retry
            └── Overloaded              the queue is full
                └── RateLimited         this client has had its share of this minute

Each message says what was found, what was needed and what to try. User-facing errors also inherit
the builtin that a caller expects. `assert` is for what only tiefsee itself can break.
"""

from __future__ import annotations


class TiefseeError(Exception):
    """Base of everything raised on purpose; the CLI prints it in one line, without a traceback."""


class ConfigError(TiefseeError, ValueError):
    """A config.json, an option or a layout that cannot be used as it stands."""


class UnsupportedModel(ConfigError):
    """A checkpoint of another family, or of a release that tiefsee does not run."""


class ModelNotFound(TiefseeError, FileNotFoundError):
    """No folder, file, preset or hub id of that name could be opened."""


class CheckpointError(TiefseeError):
    """The tensors on disk do not fit the model: missing, left over, mis-shaped or truncated."""


class RecordingError(TiefseeError):
    """A recording for the parity gate that is damaged, of another version, or of another model."""


class LayoutError(TiefseeError):
    """Rows of a cache that cannot be stored as another device wants them."""


class MoveError(TiefseeError):
    """A live request could not be handed over. Nothing has changed on either side."""


class MoveDamaged(MoveError):
    """The bytes of a moved request are cut off, or not those that were sent."""


class MoveMismatch(MoveError):
    """A moved request of another model, of another version of the form, or that this engine cannot continue."""


class MovedAlready(MoveError):
    """The engine has admitted this very move before: whoever sent it again may release the request."""


class NoRoom(MoveError):
    """The engine has no room for the moved request now."""


class DeviceError(TiefseeError, RuntimeError):
    """A device that is absent, or an operation or number format that it lacks."""


class OutOfMemory(DeviceError, MemoryError):
    """The plan needs more memory than there is; the message says by how much and what would fit."""


class NoToken(DeviceError):
    """The logits of one answer are not finite, or everything is forbidden: it ends, others go on."""


class EngineDied(DeviceError):
    """The engine process ended with requests in flight; they are lost, and may be sent again."""

    http_status = 503


class WireError(TiefseeError):
    """A frame between the front and the engine process that is too long or cannot be decoded."""


class RequestError(TiefseeError, ValueError):
    """One request cannot be served; others are not affected."""

    http_status = 400


class PromptTooLong(RequestError):
    """Prompt and answer together exceed the context or the cache."""


class InvalidSampling(RequestError):
    """A sampling value out of its range."""


class InvalidToken(RequestError):
    """A token id outside the vocabulary."""


class DeadlineExceeded(RequestError, TimeoutError):
    """The request was not done by its deadline; what ran of it was cancelled."""

    http_status = 504


class Unavailable(RequestError):
    """The engine takes no requests now: it starts, restarts, drains, is closed or has failed for good.

    `retry_after_s` is when to try again, None where nobody knows.
    """

    http_status = 503

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(Unavailable):
    """As much waits as may wait."""

    http_status = 429


class RateLimited(Overloaded):
    """The client has used up its requests or tokens of this minute."""
