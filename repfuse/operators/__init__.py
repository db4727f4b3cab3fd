"""What each operator is as a linear op, or why it is none."""
