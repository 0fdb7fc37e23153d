"""Errors whose cause the user can mend; scripts show them without a traceback."""


class UserError(ValueError):
    """Something given (a value, a file, a folder) cannot be used.

    The message names it, says what is allowed and what to do.
    """
