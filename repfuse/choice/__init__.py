"""What is to be merged: what each way costs, and which together cost least."""
