"""Sizes as people write them: 10G, 512M, 1.5TiB, 4096."""

from __future__ import annotations

import decimal
import re

GIB = 1 << 30
_UNITS = {'': 0, 'k': 10, 'm': 20, 'g': 30, 't': 40, 'p': 50}
_PATTERN = re.compile(r'(?P<number>\d+(\.\d+)?)\s*(?P<unit>[kmgtp]?)(i?b)?', re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Bytes. Units are powers of 1024 whichever way they are spelt. Raises ValueError with what was expected."""
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"'{text}' is not a size: write bytes or a number with a unit, such as 512M, 10G or 1.5TiB")
    amount = decimal.Decimal(match['number']) * (1 << _UNITS[match['unit'].lower()])
    if amount != amount.to_integral_value():
        raise ValueError(f"'{text}' is not a whole number of bytes")
    return int(amount)


def format_bytes(amount: int) -> str:
    """Short, for tables: the largest unit that leaves at least 1."""
    for unit, shift in (('PiB', 50), ('TiB', 40), ('GiB', 30), ('MiB', 20), ('KiB', 10)):
        if abs(amount) >= 1 << shift:
            return f'{amount / (1 << shift):.4g} {unit}'
    return f'{amount} B'
