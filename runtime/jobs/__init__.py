"""Jobs: prompts read from files, line by line, and records of their texts written to files."""
