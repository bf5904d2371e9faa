"""The commands. Whatever else one imports, it is told first how to end."""

from . import startup

startup.begin(__name__)
