"""What processes say to each other: JSON and tensors, so that nobody who reaches a port can run code."""

import json
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

_PLAIN = (type(None), bool, int, float, str)


def encoded(value: Any) -> tuple[bytes, list[Tensor]]:
    """A value as text, and the tensors in it.

    Parameters
    ----------
    value
        Plain values, tensors on the CPU, lists, tuples and dataclasses of such.

    Raises
    ------
    TypeError
        For anything else.
    """
    tensors: list[Tensor] = []

    def plain(part: Any) -> Any:
        if isinstance(part, _PLAIN):
            return part
        if isinstance(part, Tensor):
            tensors.append(part.contiguous())
            return {"tensor": str(part.dtype).removeprefix("torch."), "shape": list(part.shape)}
        if isinstance(part, list | tuple):
            return {"list" if isinstance(part, list) else "tuple": [plain(each) for each in part]}
        if is_dataclass(part) and not isinstance(part, type):
            values = {field.name: plain(getattr(part, field.name)) for field in fields(part)}
            return {"dataclass": type(part).__name__, "fields": values}
        raise TypeError(f"cannot be sent to another process: {type(part).__name__}")

    return json.dumps(plain(value)).encode(), tensors


def decoded(text: bytes, receive: Callable[[Tensor], object], types: Sequence[type]) -> Any:
    """The value again.

    Parameters
    ----------
    text
        Of `encoded`.
    receive
        Fills a tensor with the next of the numbers; called in the order in which they were sent.
    types
        The dataclasses that may be in it; no other is made.
    """
    known = {each.__name__: each for each in types}

    def value(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        if "tensor" in part:
            dtype = getattr(torch, part["tensor"])
            tensor = torch.empty(part["shape"], dtype=dtype)
            receive(tensor)
            return tensor
        if "list" in part:
            return [value(each) for each in part["list"]]
        if "tuple" in part:
            return tuple(value(each) for each in part["tuple"])
        return known[part["dataclass"]](**{name: value(each) for name, each in part["fields"].items()})

    return value(json.loads(text))
