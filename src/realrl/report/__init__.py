"""The report of runs: one page, also live."""
