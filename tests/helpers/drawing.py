"""Pages whose figures are not drawn."""

import html

import pytest
from matplotlib.figure import Figure


def leave_undrawn(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Put the description of every figure that ``modules`` draw in its place: a page of them takes seconds."""

    def described(figure: Figure, alt: str) -> str:
        return f'<svg role="img" aria-label="{html.escape(alt)}"></svg>'

    for module in modules:
        monkeypatch.setattr(f"cryoforum.{module}.svg", described)
