"""Presets: the built-in names, how a handle becomes a local folder, and what is in such a folder."""
