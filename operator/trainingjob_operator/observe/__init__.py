"""What the operator sees and says: trainers' progress, Kubernetes events, metrics and health."""
