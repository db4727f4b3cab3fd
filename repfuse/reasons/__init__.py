"""Why something was left alone, and what merging it would save."""
