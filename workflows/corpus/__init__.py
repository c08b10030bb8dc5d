"""The corpus line: sources -> documents -> latents -> shards, each stage a Ray Data job over data at rest."""
