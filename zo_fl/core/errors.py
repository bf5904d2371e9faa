"""The one exception that a user can cause and mend."""


class ConfigError(ValueError):
    """Bad input found before any work is done.

    The message is one line: what was given, what is allowed, and which config field (or flag) to
    change. ``experiments`` commands print it and exit with status 2.
    """
