"""What can go wrong with a call to polluxd, one class for each code of the contract and two for what lies before it.

Every message says what failed, on which object or address, and what to do next: it is made to be shown to a user as
it is. `from_service` is the one place where the service's errors become these.
"""

from __future__ import annotations

from typing import Any


class PolluxError(Exception):
    """Base of them all. `code` is the name of the contract's code, or that of the class for what lies before it."""

    code = 'INTERNAL'


class Invalid(PolluxError):
    """A parameter is malformed or out of range."""

    code = 'INVALID'


class NotFound(PolluxError):
    code = 'NOT_FOUND'


class Exists(PolluxError):
    """The id or name belongs to something that differs from the request."""

    code = 'EXISTS'


class Busy(PolluxError):
    """In use: attached, open as a data socket, or worked on by a job."""

    code = 'BUSY'


class NoSpace(PolluxError):
    """The pool cannot hold it."""

    code = 'NO_SPACE'


class Unsupported(PolluxError):
    code = 'UNSUPPORTED'


class Denied(PolluxError):
    """The certificate's role, or what Cinder authorised for this host, does not allow the call."""

    code = 'DENIED'


class Retry(PolluxError):
    """The service asked to come back later until the deadline was over. The call may have happened."""

    code = 'RETRY'


class Internal(PolluxError):
    """A fault of the service or its device, or an answer that is not one."""

    code = 'INTERNAL'


class Unreachable(PolluxError):
    """No answer from the service in time. The call may have happened."""

    code = 'UNREACHABLE'
    #: A session had been made before it broke.
    spoke = False
    #: And it was an old one, which says nothing of whether the service answers now.
    stale = False


class Untrusted(PolluxError):
    """One side did not accept the other's certificate; or files of ours that are needed for it cannot be used."""

    code = 'UNTRUSTED'


class Misconfigured(PolluxError):
    """An option or a configuration file cannot be used."""

    code = 'MISCONFIGURED'


_BY_NUMBER: dict[int, type[PolluxError]] = {
    1: Invalid,
    2: NotFound,
    3: Exists,
    4: Busy,
    5: NoSpace,
    6: Unsupported,
    7: Denied,
    8: Retry,
    9: Internal,
}


def from_service(error: Any) -> PolluxError:
    """The class for a `PolluxError` of pollux.rpc. A code that this version does not know is `Internal`."""
    return _BY_NUMBER.get(int(error.code), Internal)(str(error.message))
