"""Adapters of PEFT and mlx-lm: read, held to a base model, and merged into its weights while these are read."""
