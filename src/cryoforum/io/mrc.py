"""MRC files: particle stacks that are read slice by slice, and maps."""

from cryoforum.io.maps import check_volume, read_volume, write_volume
from cryoforum.io.stacks import LazyImages, write_stack

__all__ = ["LazyImages", "check_volume", "read_volume", "write_stack", "write_volume"]
