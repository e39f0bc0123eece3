"""Errors of memory that is used up, told from our own bugs."""

import pytest
import torch

from cryoforum.runtime.memory import is_out_of_memory


def test_memory_that_there_is_not_is_known_whoever_says_so() -> None:
    with pytest.raises(RuntimeError) as found:
        torch.empty(2**55)
    assert is_out_of_memory(found.value)
    assert is_out_of_memory(MemoryError("std::bad_alloc"))
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("not enough memory"))
