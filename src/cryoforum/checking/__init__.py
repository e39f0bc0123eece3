"""Whether a particle file means what it says, and what to do where it does not."""

from cryoforum.checking.filecheck import Check, check_files
from cryoforum.checking.page import write_check

__all__ = ["Check", "check_files", "write_check"]
