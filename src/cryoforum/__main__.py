"""``python -m cryoforum`` is the command ``cryoforum``."""

from cryoforum.cli import main

main()
