"""What may be merged: from which tensors each tensor follows linearly."""
