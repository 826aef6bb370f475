"""Kubeconfigs: one of a server that does not answer, and files that are none."""

import json

NO_KUBECONFIGS = (
    "",
    "[1, 2]",
    "hello",
    "\x00\xff",
    "# A title\n\nSome prose: with a colon\n- and a list\n",
    "contexts: 1",
)


def unanswered(**cluster: str) -> str:
    """Contexts `here` (the current one) and `there`, of namespaces team-a and team-b; at the port nobody listens."""
    contexts = [
        {"name": name, "context": {"cluster": "c", "user": "u", "namespace": namespace}}
        for name, namespace in (("here", "team-a"), ("there", "team-b"))
    ]
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:9", **cluster}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": contexts,
        }
    )
