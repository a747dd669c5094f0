"""Every exception that tiefsee raises, in one tree.

    TiefseeError
    ├── ConfigError (ValueError)        a setting or a config.json that cannot be used
    │   └── UnsupportedModel            a model outside the family, refused by name
    ├── ModelNotFound (FileNotFoundError)   no such folder, file, preset or hub id
    ├── CheckpointError                 tensors missing, left over, mis-shaped, truncated
    ├── DeviceError (RuntimeError)      a device that is absent or cannot do it
    │   └── OutOfMemory (MemoryError)   by how much, and what would fit
    └── RequestError (ValueError)       one request cannot be served; carries an HTTP status
        ├── PromptTooLong
        ├── InvalidSampling
        └── InvalidToken

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


class DeviceError(TiefseeError, RuntimeError):
    """A device that is absent, or an operation or number format that it lacks."""


class OutOfMemory(DeviceError, MemoryError):
    """The plan needs more memory than there is; the message says by how much and what would fit."""


class RequestError(TiefseeError, ValueError):
    """One request cannot be served; others are not affected."""

    http_status = 400


class PromptTooLong(RequestError):
    """Prompt and answer together exceed the context or the cache."""


class InvalidSampling(RequestError):
    """A sampling value out of its range."""


class InvalidToken(RequestError):
    """A token id outside the vocabulary."""
