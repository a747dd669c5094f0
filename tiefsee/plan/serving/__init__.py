"""One deployment at work: what its cards hold, its steps, and what a closed loop of requests makes of them.

worker.py       one replica: how its ranks share a model
step.py         its decode step and prefill
loop.py         a closed loop of requests, on one pool or two
deployment.py   workers together · memory.py, weights.py, cache.py   what a card holds
"""
