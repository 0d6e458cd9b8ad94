"""The exporter's log on stderr: a line for each record, as text or JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from fastmap.text.visible import visible

FORMATS = ("text", "json")


class _Text(logging.Formatter):
    """``TIME LEVEL message``, and the lines of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname} {visible(record.getMessage())}"
        if not record.exc_info:
            return line
        return "\n".join([line, *map(visible, self.formatException(record.exc_info).split("\n"))])


class _Json(logging.Formatter):
    """An object with time, level, logger, message, and exception where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        said = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name,
                "message": record.getMessage()}
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said)


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@contextmanager
def logged(style: str) -> Iterator[None]:
    """Have fastmap's log go to stderr meanwhile, in one of `FORMATS`."""
    logger = logging.getLogger("fastmap")
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if style == "json" else _Text())
    level, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # it would come twice where the root has a handler
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates
