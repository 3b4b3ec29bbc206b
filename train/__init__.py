"""Train a model from packed shards: torchrun train/main.py."""
