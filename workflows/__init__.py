"""Ray jobs, tracking and the command line of OneFlow."""
