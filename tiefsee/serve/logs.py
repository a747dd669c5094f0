"""One line per event, as text or as JSON. Prompts and answers never appear; request ids do."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, TextIO

from tiefsee.errors import ConfigError


class Lines(logging.Formatter):
    """`fields` of a record (a dictionary) become key=value pairs, or members of the JSON object."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        trace = self.formatException(record.exc_info) if record.exc_info else None
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        if self._as_json:
            head = {"time": stamp, "level": record.levelname.lower(), "message": record.getMessage()}
            return json.dumps({**head, **fields, **({"trace": trace} if trace else {})}, ensure_ascii=False)
        pairs = "".join(f" {key}={value}" for key, value in fields.items())
        return f"{stamp} {record.levelname.lower()} {record.getMessage()}{pairs}" + (f"\n{trace}" if trace else "")


def start_logging(form: str, stream: TextIO = sys.stderr) -> None:
    """Send the server's log to `stream`; the only place that touches logging's global tree."""
    if form not in ("text", "json"):
        raise ConfigError(f"--log-format is {form!r}; needed text or json")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Lines(form == "json"))
    logger = logging.getLogger("tiefsee")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
