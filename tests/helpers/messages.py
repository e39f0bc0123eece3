"""What the library says through logging, as tests read it."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager


class _Recorder(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def messages() -> Iterator[list[str]]:
    """Every line that the block logs."""
    logger, recorder = logging.getLogger("cryoforum"), _Recorder()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(recorder)
    try:
        yield recorder.messages
    finally:
        logger.removeHandler(recorder)
        logger.setLevel(level)


@contextmanager
def logged(match: str) -> Iterator[list[str]]:
    """Every line that the block logs, of which one must fit ``match``."""
    with messages() as found:
        yield found
    assert any(re.search(match, line) for line in found), f"expected {match!r} in the log, found {found}"


@contextmanager
def silence() -> Iterator[None]:
    """The block must log nothing."""
    with messages() as found:
        yield
    assert not found
