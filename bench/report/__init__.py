"""The report: Table 1 from a results folder, with costs, intervals and the published numbers. No torch; no plotting until it draws."""
