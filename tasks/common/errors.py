"""Errors that the user can fix: one clear sentence and an exit code instead of a traceback."""

import errno

FULL = (errno.ENOSPC, errno.EDQUOT)  # the error numbers of a full disk and of an exhausted quota


class UserError(Exception):
    """Something in the user's files or parameters stops the run.

    The command line prints the sentence and exits with `code` (2: parameters or command line, 3: data).
    """

    def __init__(self, sentence: str, code: int = 2) -> None:
        super().__init__(sentence)
        self.code = code


class DataError(UserError):
    """The data are missing, damaged or insufficient for the stage; exit code 3."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, code=3)
