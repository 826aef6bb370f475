"""Checkpoints that exist only once their COMMIT.json exists, and attempts that fence each other.

The modules: `attempt` (whose turn it is), `commits` (what exists), `retention` (what is kept), `storage` (torch's
distributed checkpoints over a `Store`), `patience` (outages), `state` (what is saved), `staging` (its copy in memory),
`checkpointer` (save and load, by all ranks together). Only `storage` and the last three import torch.
"""
