"""OneFlow: insertion-only Edit Flow for text and Flow Matching for images in one bidirectional Transformer."""
