"""Tokens to text while they come: whole characters, stop strings, offsets."""
