"""What ``experiments.diagnose`` measures, and the page that it makes of it."""
