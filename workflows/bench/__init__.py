"""Benchmarks: what something of ours reaches beside a peer, on this machine, now."""
