"""The commands. ``startup`` comes first: it can end a command that is still importing."""

from . import startup

startup.begin(__name__)
