"""Pollux: block storage for virtual machines. Drivers for Cinder and Nova, and the command line."""

__version__ = '0.1.0'
