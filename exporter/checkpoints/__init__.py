"""Reading and writing checkpoint files, one tensor at a time, by weight maps that are data."""
