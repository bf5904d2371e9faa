"""What one client computes, one file a kind. Knows nothing of ``host`` and ``algorithms``."""
