"""Errors that mean that memory is used up, whoever raises them."""

# Of PyTorch's errors, which are plain RuntimeErrors on a CPU.
_WORDS = ("not enough memory", "can't allocate memory", "out of memory", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was asked for that there is not."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)
