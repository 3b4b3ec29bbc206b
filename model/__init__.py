"""Llama-family models in torch alone: shape, attention, transformer, and their names in transformers."""
