"""The faster form of a model, and the proof that it answers like the original."""
