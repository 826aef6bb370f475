"""The Kubernetes API: who serves it (connection), how it is asked (client), and how pods are followed (informer)."""
