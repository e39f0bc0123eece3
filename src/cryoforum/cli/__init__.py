"""The command line, in modules by the kind of command.

Every module registers its commands when it is imported; `cryoforum --help` lists them in this order.
"""
# ruff: noqa: I001, F401

from cryoforum.cli.app import app
from cryoforum.cli import check, train, align, results, watch, convert, relion_job, study

__all__ = ["app"]
