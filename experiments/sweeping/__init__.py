"""What ``experiments.sweep`` is made of: jobs from points and seeds, processes, display, record."""
