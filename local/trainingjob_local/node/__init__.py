"""The process node: runs the pods that are bound to it as processes, each in namespaces of its own."""
