"""A model as a file and as bytes: reading, checking, writing."""
