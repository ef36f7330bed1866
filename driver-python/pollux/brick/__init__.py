"""The os-brick side: `register()` makes the connector known to os-brick's factory."""

from pollux.brick.register import register

__all__ = ['register']
