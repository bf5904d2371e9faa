"""Short files to copy: own model and data, a new estimator, a new algorithm, reading a run."""
