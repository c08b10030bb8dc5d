"""A model behind HTTP: one Ray Serve application, and the same generation without a server."""
