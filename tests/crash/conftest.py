"""The tests below need a polluxd of their own, see tests/lib/pollux_testing.py."""

pytest_plugins = ["pollux_testing"]
