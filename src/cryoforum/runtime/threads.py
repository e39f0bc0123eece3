"""How many threads do the work."""

import torch

from cryoforum.errors import InputError


def use_threads(count: str) -> None:
    """Let torch use so many threads, and the compiled loops, which take as many as it does.

    Parameters
    ----------
    count : str
        As a user writes it: 1 or more.

    Raises
    ------
    InputError
        Where it is no such number.
    """
    if not count.isdecimal() or int(count) < 1:
        raise InputError(f"expected a number of threads of 1 or more, found '{count}'")
    torch.set_num_threads(int(count))
