"""The command line: a thin coat over the steps on files.

Every module registers its commands when it is imported; `cryoforum --help` lists them in this order.
"""

from cryoforum.cli import checking, files, making, posing, relionjob, results, studies, watching
from cryoforum.cli.app import app

__all__ = ["app", "checking", "files", "making", "posing", "relionjob", "results", "studies", "watching"]
