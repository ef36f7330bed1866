"""The one exception that ends a verb with a message instead of a traceback."""


class AllInOneError(Exception):
    """Something the user must know: what failed, and where to look or what to do."""
