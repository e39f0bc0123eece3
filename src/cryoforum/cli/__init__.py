"""The command line, in modules by the kind of command.

Every module registers its commands when it is imported; `cryoforum --help` lists them in this order.
"""
# ruff: noqa: I001

from cryoforum.cli.app import app
from cryoforum.cli import checking, making, posing, results, watching, files, relionjob, studies

__all__ = ["app", "checking", "files", "making", "posing", "relionjob", "results", "studies", "watching"]
