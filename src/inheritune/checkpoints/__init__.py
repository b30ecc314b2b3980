"""Tensors on disk: safetensors and pickles, their indexes, copying them, and the hub. No model is built here."""
