"""What commands do, step by step."""
