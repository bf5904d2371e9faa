"""The host's side of a run: disk, clock, screen, processes, and the schedule that they follow."""
