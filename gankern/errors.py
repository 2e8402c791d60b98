"""The errors whose message is the one line that the command line prints: no traceback helps with them; and which of
torch's mean the same as one of them."""


class InputError(ValueError):
    """A wrong option, file or folder. The message names it, says what was found and what was expected. Exit code 2."""


class OutOfMemory(RuntimeError):
    """A phase of a training step, or a picture, doesn't fit the memory. A run's state is that before the phase. Exit
    code 1."""


class NonFiniteError(RuntimeError):
    """A run has diverged: too many of its updates in a row had non-finite gradients. Exit code 1."""


class RankError(RuntimeError):
    """Another rank has died or doesn't answer, or the ranks no longer hold the same networks. Exit code 1."""


_OUTSIDE_THE_ALLOCATOR = ("CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED")
_OUTSIDE_THE_ALLOCATOR += ("CUDA error: out of memory", "Triton Error [CUDA]: out of memory", "DefaultCPUAllocator")


def is_shortage(error: RuntimeError) -> bool:
    """Whether an error says that the memory of the GPU, or of the host, is used up. By names: torch isn't imported."""
    return type(error).__name__ == "OutOfMemoryError" or any(name in str(error) for name in _OUTSIDE_THE_ALLOCATOR)
