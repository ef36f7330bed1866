"""polluxctl service ..."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from pollux.cli import base


class Show(base.ShowOne):
    """Show which service this is, its version and what it can do."""

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Any]]:
        return base.fields(self.client.describe())


class Stats(base.ShowOne):
    """Show how much the service holds."""

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Any]]:
        return base.fields(self.client.stats())
