"""Errors that a user can act on."""


class UserError(Exception):
    """Something the user can mend: what was wrong, where, and what to do, in one or two lines.

    The command line prints the message alone, without a traceback, and exits with 2.
    """


def missing_extra(package: str, extra: str, purpose: str) -> UserError:
    """The one-line error for an optional dependency that is not installed."""
    return UserError(f"{purpose} needs the package {package}: pip install 'onefold[{extra}]'")
