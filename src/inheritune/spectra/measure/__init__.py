"""The arithmetic: rank, column mass and more of attention matrices, and of whole blocks."""
