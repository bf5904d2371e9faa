"""What may be added to any phase: each a function ``Phase -> Phase``, or a reading of messages."""
