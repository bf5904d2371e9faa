"""Options of any phase, each a function ``Phase -> Phase``: faults, robust rules, an early end."""
