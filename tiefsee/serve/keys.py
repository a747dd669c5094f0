"""API keys: who calls, and what they may.

A key file is TOML and holds hashes, so that reading it gives no key away:

    [[key]]
    name = "team-a"
    sha256 = "9f86d081..."            # of the key; `tiefsee serve --new-key NAME` makes both
    priority = 0                      # added to what a request asks for; lower is served first
    weight = 2.0                      # share among clients that wait
    requests_per_minute = 600
    tokens_per_minute = 200000

A plain SHA-256 is enough because keys are random and long: there is no dictionary to try.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiefsee.errors import ConfigError
from tiefsee.serve.failures import HttpError

FIELDS = {"name", "sha256", "priority", "weight", "requests_per_minute", "tokens_per_minute"}
SHORTEST_KEY = 16


@dataclass(frozen=True)
class Caller:
    """Who sends a request. `salt` keeps its prefix-cache hits from other callers' eyes (by option)."""

    name: str
    priority: int = 0
    weight: float = 1.0
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    salt: str | None = None


@dataclass(frozen=True)
class Keys:
    """Hashes of the keys that are let in; none at all means that everybody is."""

    callers: tuple[tuple[bytes, Caller], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.callers)

    def caller(self, headers: Mapping[bytes, bytes], address: str) -> Caller:
        """Whose request it is, by `Authorization: Bearer` or `x-api-key`; 401 if by nobody that is known.

        Every hash is compared, each in constant time. Without keys callers are told apart by address.
        """
        if not self.callers:
            return Caller(address)
        given = headers.get(b"authorization", b"")
        key = given[7:] if given[:7].lower() == b"bearer " else headers.get(b"x-api-key", b"")
        digest = hashlib.sha256(key.strip()).digest()
        found = None
        for known, caller in self.callers:
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None:
            what = "an API key that is not known here" if key else "no API key"
            raise HttpError(
                401, f"found {what}; send one as 'Authorization: Bearer KEY'", [(b"www-authenticate", b"Bearer")]
            )
        return found


def read_keys(path: Path | None, plain: Iterable[str] = (), *, salted: bool = False) -> Keys:
    """Keys of a file, and those given plainly (an environment variable). `salted`: one salt per key."""
    entries = [] if path is None else _read_file(path)
    found = [(bytes.fromhex(entry.pop("sha256")), entry) for entry in entries]
    for number, key in enumerate(plain):
        if len(key) < SHORTEST_KEY:
            raise ConfigError(
                f"an API key of {len(key)} characters was given; needed at least {SHORTEST_KEY}, and random ones; "
                "`tiefsee serve --new-key NAME` makes one"
            )
        found.append((hashlib.sha256(key.encode()).digest(), {"name": f"env-{number}"}))
    names = [entry["name"] for _, entry in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"{path} names a key twice; needed are different names: {', '.join(names)}")
    return Keys(tuple((digest, Caller(**entry, salt=digest.hex() if salted else None)) for digest, entry in found))


def _read_file(path: Path) -> list[dict[str, Any]]:
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("key", [])
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"the key file {path} cannot be read: {error}") from error
    if not entries:
        raise ConfigError(f"the key file {path} holds no [[key]]; `tiefsee serve --new-key NAME` prints one")
    for entry in entries:
        unknown = set(entry) - FIELDS
        if unknown or not isinstance(entry.get("name"), str):
            raise ConfigError(f"a key in {path} has {', '.join(unknown) or 'no name'}; needed {', '.join(FIELDS)}")
        digest = str(entry.get("sha256", ""))
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise ConfigError(f"key {entry['name']!r} in {path} has no sha256 of 64 hex digits; make one anew")
    return [dict(entry) for entry in entries]


def new_key(name: str) -> tuple[str, str]:
    """A fresh key, and the lines for the key file."""
    key = "tsk-" + secrets.token_urlsafe(32)
    return key, f'[[key]]\nname = "{name}"\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n'
