"""The command line, in modules by the kind of command.

Every module registers its commands when it is imported; `cryoforum --help` lists them in this order.
"""
# ruff: noqa: I001, F401

from cryoforum.cli.app import app, main
from cryoforum.cli import particles, models, poses, refinement, maps, runs, relion_job

__all__ = ["app", "main"]
