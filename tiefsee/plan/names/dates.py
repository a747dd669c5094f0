"""Dates as sources give them: a day, a month or a year."""

from __future__ import annotations

import datetime

from tiefsee.errors import ConfigError


def full_date(date: str) -> str:
    """2025-02 -> 2025-02-15: the middle of what was said."""
    return {4: f"{date}-07-01", 7: f"{date}-15"}.get(len(date), date)


def check_date(date: str | None) -> None:
    """ConfigError for what is no date."""
    if date:
        try:
            datetime.date.fromisoformat(full_date(date))
        except ValueError:
            raise ConfigError(f"date is {date!r}; needed is YYYY-MM-DD, YYYY-MM or YYYY") from None


def years_after(reference: str, date: str | None) -> float:
    """From the reference to a date, at most one year either way: a trend is not drawn out for ever. 0 without a date.

    Raises ConfigError for what is no date.
    """
    check_date(date)
    if not date:
        return 0.0
    days = (datetime.date.fromisoformat(full_date(date)) - datetime.date.fromisoformat(reference)).days
    return max(-1.0, min(1.0, days / 365))
