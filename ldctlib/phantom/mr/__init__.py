"""Random patients of cine cardiac MR: short-axis slices in arbitrary units, with the labels of the heart."""
