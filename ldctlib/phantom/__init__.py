"""Random patients: noise-free slices in HU with organ labels, and their simulated scans."""
