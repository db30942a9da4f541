"""Text into token ids and back, by the files of a bundle."""
