"""How fast a model is, how large, how exact in int8; deciding by that."""
