"""Training on Ray: the controller, the loop of a worker, checkpoints, and the registration of what came out."""
