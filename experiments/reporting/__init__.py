"""What tables, plots and the report share: runs read back, comparisons, the paper's figures."""
