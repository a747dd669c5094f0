"""Reading and printing quantities: "3.2 TB/s" <-> 3.2e12. The only place that knows prefixes.

Inside tiefsee every figure is a plain float in base units (bytes, flops, seconds, tokens, and those per
second); a name's suffix says which. Text is read here, at the edge, and printed here.

* Decimal prefixes: k, M, G, T, P, E (and m, u, n for seconds). Binary ones: Ki, Mi, Gi, Ti, Pi, Ei.
  GB is 1e9, GiB is 2**30.
* Units, with `/s` for rates: B (or bytes), FLOP (or flops), s, tokens (or tok).
* `FLOPS` and `FLOPs` are refused: the one reads as a rate, the other as a count. Say FLOP or FLOP/s.
"""

from __future__ import annotations

import math
import re
from typing import Literal

from tiefsee.errors import ConfigError

Unit = Literal["bytes", "flops", "s", "tokens", "bytes/s", "flops/s", "tokens/s"]

_DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {f"{p}i": 2.0 ** (10 * n) for n, p in enumerate("KMGTPE", start=1)}
_SMALL = {"m": 1e-3, "u": 1e-6, "µ": 1e-6, "n": 1e-9}
# An upper-case K is common for tokens and bytes ("128K"), and unambiguous: kelvin is no unit here.
_PREFIXES = {**_DECIMAL, "K": 1e3, **_BINARY, **_SMALL}

# How each unit is spelled; the first spelling is the one that is printed.
_SPELLINGS: dict[str, tuple[str, ...]] = {
    "bytes": ("B", "bytes", "byte"),
    "flops": ("FLOP", "flops", "flop"),
    "s": ("s", "seconds", "second", "sec"),
    "tokens": ("tokens", "token", "tok"),
}
_LONG_TIMES = {"min": 60.0, "h": 3600.0, "d": 86400.0}

_NUMBER = re.compile(r"\s*([+-]?(?:\d[\d_,]*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*?)\s*", re.DOTALL)


def parse_quantity(text: str | int | float, unit: Unit, *, needs_unit: bool = False) -> float:
    """The value of `text` in base units: "64 GiB" -> 68719476736.0, "16GB" -> 1.6e10.

    A bare number is taken as base units already, unless the text `needs_unit`: then "96" and "96 G" are refused.
    Raises ConfigError when the text is no finite number, or its unit is not the one asked for.
    """
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        return _finite(float(text), str(text), unit)
    match = _NUMBER.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise _unreadable(str(text), unit, "it does not start with a number")
    assert isinstance(text, str)
    if needs_unit and match[2] in _PREFIXES:
        raise _unreadable(text, unit, "it has no unit")
    number = _finite(float(match[1].replace(",", "").replace("_", "")), text, unit)
    return number * _scale(match[2], unit, text)


def format_quantity(value: float, unit: Unit, digits: int = 3, *, binary: bool = False) -> str:
    """`value` with the prefix that leaves 1 to 999 before the point: 3.2e12 -> "3.2 TB/s".

    `digits` are significant ones; `binary` prints KiB, MiB, ... and is for bytes only.
    """
    base, rate = unit.removesuffix("/s"), "/s" if unit.endswith("/s") else ""
    if binary and base != "bytes":
        raise ConfigError(f"found binary prefixes for {unit}; only bytes have them; leave binary=False")
    if unit == "s" and abs(value) < 1:
        prefixes = {"n": 1e-9, "µ": 1e-6, "m": 1e-3}
    elif unit == "s":
        prefixes = {"": 1.0}  # nobody says kiloseconds
    else:
        prefixes = {"": 1.0, **_BINARY} if binary else _DECIMAL
    number, prefix = _with_prefix(value, prefixes, digits)
    return f"{number} {prefix}{_SPELLINGS[base][0]}{rate}"


def scale_of_quantity(value: float, unit: Unit) -> tuple[float, str]:
    """What `format_quantity` divides such a value by, and what it writes behind it: 1.41e11 bytes -> (1e9, "GB")."""
    label = format_quantity(value, unit).split(" ", 1)[1]
    return _scale(label, unit, label), label


def parse_bytes(text: str | int | float) -> float:
    """Bytes of "64 GiB", "16GB", "16G" or 1024; never negative."""
    value = parse_quantity(text, "bytes")
    if value < 0:
        raise _unreadable(str(text), "bytes", "it is negative")
    return value


def format_bytes(value: float, digits: int = 3, *, binary: bool = False) -> str:
    """Bytes for people: 1.6e10 -> "16 GB", or "14.9 GiB" with binary prefixes."""
    return format_quantity(value, "bytes", digits, binary=binary)


def format_seconds(value: float, digits: int = 3) -> str:
    """Seconds for people: 0.0123 -> "12.3 ms"; 5400 -> "1 h 30 min" from one hour on."""
    if value < 3600 or not math.isfinite(value):
        return format_quantity(value, "s", digits)
    minutes = round(value / 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min")]
    return " ".join(f"{n} {name}" for n, name in parts if n)


def _scale(suffix: str, unit: Unit, text: str) -> float:
    """Factor of what follows the number: prefix and unit, or a prefix alone, or nothing."""
    base, wants_rate = unit.removesuffix("/s"), unit.endswith("/s")
    if suffix in _PREFIXES and (suffix not in _SMALL or base == "s"):
        return _PREFIXES[suffix]
    stem = suffix.removesuffix("/s")
    if (stem != suffix) != wants_rate:
        raise _unreadable(text, unit, f"its unit is {suffix!r}")
    if unit == "s" and stem in _LONG_TIMES:
        return _LONG_TIMES[stem]
    for spelling in _SPELLINGS[base]:
        prefix = stem.removesuffix(spelling).rstrip() if stem.endswith(spelling) else None
        if prefix is not None and prefix in _PREFIXES and (prefix not in _SMALL or base == "s"):
            return _PREFIXES[prefix]
    raise _unreadable(text, unit, f"its unit is {suffix!r}")


def _with_prefix(value: float, prefixes: dict[str, float], digits: int) -> tuple[str, str]:
    """The rounded number and the prefix; rounding up to the next prefix (999.9 k -> 1 M) is seen."""
    names = list(prefixes)
    chosen = max((i for i, name in enumerate(names) if abs(value) >= prefixes[name]), default=0)
    number = _significant(value / prefixes[names[chosen]], digits)
    if chosen + 1 < len(names):
        step = prefixes[names[chosen + 1]] / prefixes[names[chosen]]
        if abs(float(number)) >= step:
            chosen += 1
            number = _significant(value / prefixes[names[chosen]], digits)
    return number, names[chosen]


def _significant(value: float, digits: int) -> str:
    """`digits` significant digits, no exponent below 1e6, no trailing zeros: 3.20 -> "3.2"."""
    if not math.isfinite(value) or abs(value) >= 1e6:
        return f"{value:.{digits}g}"
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    decimals = max(0, digits - 1 - magnitude)
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _finite(value: float, text: str, unit: str) -> float:
    if not math.isfinite(value):
        raise _unreadable(text, unit, "it is not finite")
    return value


def _unreadable(text: str, unit: str, why: str) -> ConfigError:
    base, rate = unit.removesuffix("/s"), "/s" if unit.endswith("/s") else ""
    examples = {"bytes": ("64 GiB", "16 GB"), "flops": ("990 TFLOP", "3e12 FLOP")}
    examples |= {"s": ("25 ms", "1.5 s"), "tokens": ("128 ktokens", "500 tokens")}
    first, second = (f"{e}{rate}" for e in examples[base])
    return ConfigError(f'cannot read {text!r} as {unit}: {why}; write for example "{first}" or "{second}"')
