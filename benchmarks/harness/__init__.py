"""What every benchmark has in common: jobs, rows of results, data, tables and figures."""
