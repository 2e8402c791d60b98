"""The errors whose message is the one line that the command line prints: no traceback helps with them."""


class InputError(ValueError):
    """A wrong option, file or folder. The message names it, says what was found and what was expected. Exit code 2."""


class OutOfMemory(RuntimeError):
    """A phase of a training step doesn't fit the GPU's memory. The state is that before the phase. Exit code 1."""


class NonFiniteError(RuntimeError):
    """A run has diverged: too many of its updates in a row had non-finite gradients. Exit code 1."""


class RankError(RuntimeError):
    """Another rank has died or doesn't answer, or the ranks no longer hold the same networks. Exit code 1."""
