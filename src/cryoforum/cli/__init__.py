"""The command line: a thin coat over the steps on files.

Every module registers its commands when it is imported; `cryoforum --help` lists them in this order.
"""

from cryoforum.cli import making, posing, results, studies, watching
from cryoforum.cli.app import app

__all__ = ["app", "making", "posing", "results", "studies", "watching"]
