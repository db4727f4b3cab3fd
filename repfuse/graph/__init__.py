"""What a graph says, read only, and how it is edited."""
