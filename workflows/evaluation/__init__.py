"""Evaluation of a served model, and the gate in front of the alias `champion`."""
