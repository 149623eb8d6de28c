"""Tools for all other parts, which know no model and no image."""
