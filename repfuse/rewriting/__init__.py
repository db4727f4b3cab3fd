"""From what was chosen to new nodes."""
