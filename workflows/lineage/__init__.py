"""From a model version back to the files that it was made from."""
