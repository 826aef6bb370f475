"""How the operator scales: many TrainingJobs on a real control plane whose nodes are played by KWOK.

`make bench-operator N=500`. Nothing leaves the sandbox that it runs in.
"""
