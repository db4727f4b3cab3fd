"""Telling results to people and programs."""
