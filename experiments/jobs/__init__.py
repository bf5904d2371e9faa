"""The runs of a sweep: planned from its points and seeds, run as processes, shown, recorded."""
