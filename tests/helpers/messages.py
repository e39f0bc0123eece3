"""What the library says through logging, as tests read it."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Recorder(logging.Handler):
    def __init__(self, heard: Callable[[str], object]) -> None:
        super().__init__(logging.INFO)
        self.messages: list[str] = []
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        self._heard(record.getMessage())


@contextmanager
def messages(heard: Callable[[str], object] = str) -> Iterator[list[str]]:
    """Every line that the block logs, each of which goes to ``heard`` at once."""
    logger, recorder = logging.getLogger("cryoforum"), _Recorder(heard)
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
