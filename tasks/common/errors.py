"""Errors that are the user's to mend: one clear sentence, an exit code, no stack trace."""

import errno

FULL = (errno.ENOSPC, errno.EDQUOT)  # what the system says when a disk, or the user's share of it, is full


class UserError(Exception):
    """Something in the user's files or parameters stops the run.

    The command line prints the sentence and exits with `code` (2: parameters or command line, 3: data).
    """

    def __init__(self, sentence: str, code: int = 2) -> None:
        super().__init__(sentence)
        self.code = code


class DataError(UserError):
    """The data cannot carry the stage (nobody found, an empty split); exit code 3."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, code=3)
