"""Benchmarks: what something of ours reaches beside a peer, on this machine, now.

What measures the method needs torch, numpy and oneflow_core alone, so it runs where the command `oneflow` does not:
python -c "import json; from workflows.bench.vocab_loss import run; print(json.dumps(run(5, 'cuda').to_json()))"
"""
