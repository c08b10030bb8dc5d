"""Runs as people ask for them: listed, shown, and laid beside each other."""
