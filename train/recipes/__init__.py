"""Recipes: one TOML of TrainConfig fields per published or own set of hyper-parameters."""
