"""Stages on a cluster: submitted to a Ray job server, or rendered for KubeRay."""
