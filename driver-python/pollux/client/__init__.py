"""The way to polluxd: `Client` has one method for each call of the contract in thrift/pollux.thrift."""

from pollux.client.client import Client
from pollux.client.settings import Settings

__all__ = ['Client', 'Settings']
