"""Whether a particle file means what it says, and what to do where it does not."""

from cryoforum.checking.filecheck import Check, Reference, check_files
from cryoforum.checking.page import write_check

__all__ = ["Check", "Reference", "check_files", "write_check"]
