"""The two flows: insertion-only Edit Flow for text, Flow Matching for image latents, and their common clock."""
