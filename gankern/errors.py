"""The error that a person can mend: its message is the one line that the command line prints before exit 2."""


class InputError(ValueError):
    """A wrong option, file or folder. The message names it, says what was found and what was expected."""
