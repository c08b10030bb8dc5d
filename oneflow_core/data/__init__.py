"""Shards, their manifest, and the loader over them."""
