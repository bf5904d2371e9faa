"""Disk, clock, screen and processes: everything with a side effect."""
