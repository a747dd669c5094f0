"""Fields of a config.json by the kind of value they hold. What does not fit is a ConfigError that names the field.

Everywhere null is the same as absent: then `default` counts, and without one the field is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tiefsee.errors import ConfigError

Config = Mapping[str, Any]


def get(config: Config, key: str, default: Any) -> Any:
    value = config.get(key)
    return default if value is None else value


def positive(config: Config, key: str, default: int | None = None) -> int:
    return whole(config, key, default, least=1)


def whole(config: Config, key: str, default: int | None = None, *, least: int = 0) -> int:
    """A whole number of at least `least`, which is 0 or 1."""
    value = _needed(config, key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise _unfit(key, value, "a positive whole number" if least else "0 or a positive whole number")
    return value


def number(config: Config, key: str, default: float | None = None) -> float:
    """A finite number."""
    value = _needed(config, key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _unfit(key, value, "a number")
    return float(value)


def mapping(config: Config, key: str) -> Config:
    """An object; an empty one if it is absent."""
    value = get(config, key, {})
    if not isinstance(value, Mapping):
        raise _unfit(key, value, "an object")
    return value


def entries(config: Config, key: str, count: int) -> list[Any] | None:
    """A list with an entry for each of `count` layers (it may have more); None if it is absent."""
    value = get(config, key, None)
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise _unfit(key, value, "a list")
    if len(value) < count:
        raise ConfigError(f"{key} has {len(value)} entries; num_hidden_layers = {count} needs as many")
    return list(value)


def token_ids(config: Config, key: str) -> tuple[int, ...]:
    """One token id or several; none if it is absent."""
    value = get(config, key, ())
    ids = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise _unfit(key, value, "a token id or a list of them")
    return ids


def _needed(config: Config, key: str, default: float | None) -> Any:
    value = get(config, key, default)
    if value is None:
        raise ConfigError(f"config.json has no {key!r}, which {config.get('model_type', 'this model')} needs")
    return value


def _unfit(key: str, value: object, needed: str) -> ConfigError:
    return ConfigError(f"found {key} = {value!r}; needed {needed}")
