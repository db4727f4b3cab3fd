"""The block families in `patterns/`, and which of them a group is."""
