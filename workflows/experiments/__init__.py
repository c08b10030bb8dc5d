"""Sweeps: one training config with some keys varied, each trial a training run of its own."""
