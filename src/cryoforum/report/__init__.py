"""Figures and the HTML page; the only room that imports matplotlib."""
