"""The one seam where errors of the service become Cinder's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from cinder import exception
from oslo_log import log as logging

from pollux import errors

LOG = logging.getLogger(__name__)
_Method = TypeVar('_Method', bound=Callable[..., Any])


class Busy(exception.VolumeIsBusy):
    """Cinder's own text speaks of snapshots, which are not what keeps a volume of ours busy."""

    message = '%(reason)s'


def to_cinder(error: errors.PolluxError, doing: str) -> exception.CinderException:
    """What Cinder's manager acts on. The text of the service is kept: it says what failed and what to do."""
    text = f'{doing}: {error}'
    if isinstance(error, errors.Busy):
        return Busy(volume_name=doing, reason=text)
    if isinstance(error, (errors.Invalid, errors.Unsupported)):
        return exception.InvalidInput(reason=text)
    if isinstance(error, errors.Misconfigured):
        return exception.InvalidConfigurationValue(text)
    return exception.VolumeBackendAPIException(data=f'{error.code}: {text}')


def mapped(method: _Method) -> _Method:
    """For the driver's methods: errors of the service leave as Cinder's, and are in the log."""
    @functools.wraps(method)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        try:
            return method(*arguments, **options)
        except errors.PolluxError as error:
            named = [str(one.id) for one in arguments[1:] if hasattr(one, 'id') and not hasattr(one, 'request_id')]
            doing = ' '.join([method.__name__.replace('_', ' '), *named])
            LOG.error('%s: %s: %s', doing, error.code, error)
            raise to_cinder(error, doing) from error
    return wrapper  # type: ignore[return-value]
