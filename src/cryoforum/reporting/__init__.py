"""Figures and the HTML page; the only room that imports matplotlib."""

from cryoforum.reporting.page import write_report

__all__ = ["write_report"]
