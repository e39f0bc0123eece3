"""``python -m cryoforum`` is the command ``cryoforum``."""

from cryoforum.cli import app

app(prog_name="cryoforum")
