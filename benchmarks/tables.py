"""Rows of Markdown tables, printed as they are found."""


def head(*names: str) -> None:
    """The first row, and the line below it."""
    row(*names)
    row(*("---" for _ in names))


def row(*cells: object) -> None:
    """A row."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def seconds(value: float) -> str:
    """Of a duration."""
    return f"{value:.0f} s"


def percent(share: float) -> str:
    """Of a share."""
    return f"{100 * share:.1f} %"
