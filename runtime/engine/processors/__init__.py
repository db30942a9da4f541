"""What changes logits before a token is chosen by them, one file each."""
