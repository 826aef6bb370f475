"""Whether the operator can work at all: the CRD is there, and its account has the rights that it needs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from .api import (
    CONFIG_MAPS,
    EVENTS,
    LEASES,
    POD_GROUPS,
    PODS,
    SECRETS,
    SERVICES,
    TRAINING_JOBS,
    WORKLOADS,
    ApiError,
    Forbidden,
    NotFound,
    Resource,
)
from .client import Client

RIGHTS: tuple[tuple[Resource, str | None, tuple[str, ...]], ...] = (
    (TRAINING_JOBS, None, ("get", "list", "watch")),
    (TRAINING_JOBS, "status", ("update",)),
    (TRAINING_JOBS, "finalizers", ("update",)),
    (PODS, None, ("get", "list", "watch", "create", "patch", "delete")),
    (SERVICES, None, ("get", "create", "delete")),
    (CONFIG_MAPS, None, ("get", "create", "delete")),
    (SECRETS, None, ("create",)),
    (EVENTS, None, ("list", "create", "patch")),
)
"""All that the operator ever does for jobs, by resource and subresource. On Secrets it may only create."""
OPTIONAL_RIGHTS: tuple[tuple[Resource, str | None, tuple[str, ...]], ...] = (
    (POD_GROUPS, None, ("get", "create", "patch", "delete")),
    (WORKLOADS, None, ("get",)),
)
"""And where the API server serves these resources."""
LEASE_RIGHTS = ("get", "create", "update")
"""What it does to its own lease, in its own namespace."""


class StartProblem(Exception):
    """Why the operator cannot start, and what to do about it."""


async def check(client: Client, namespaces: Sequence[str | None], lease: tuple[str, str] | None) -> None:
    """Raise `StartProblem` unless the CRD is installed and all rights are granted.

    namespaces: where jobs are worked on (None: in all). lease: namespace and name of the lease, if one is used.
    """
    try:
        await client.list_page(TRAINING_JOBS, namespaces[0], "", limit=1)
    except NotFound:
        raise StartProblem(
            f"the API server does not know {TRAINING_JOBS.kind} ({TRAINING_JOBS.api_version}): "
            "install the CRD first (kubectl apply -f crds/, or the Helm chart)"
        ) from None
    except Forbidden:
        pass  # Told below, together with all other rights that are missing.
    except ApiError as error:
        raise StartProblem(f"the API server refuses the operator: {error}") from error
    try:
        optional = [right for right in OPTIONAL_RIGHTS if await client.serves(right[0])]
        questions = [
            _lacks(client, resource, verb, namespace, subresource)
            for namespace in namespaces
            for resource, subresource, verbs in (*RIGHTS, *optional)
            for verb in verbs
        ]
        if lease is not None:
            # What may be created cannot be named in a role.
            names = [("" if verb == "create" else lease[1], verb) for verb in LEASE_RIGHTS]
            questions += [_lacks(client, LEASES, verb, lease[0], name=name) for name, verb in names]
        missing = [lack for lack in await asyncio.gather(*questions) if lack]
    except ApiError as error:
        raise StartProblem(f"cannot ask for the operator's rights: {error}") from error
    if missing:
        raise StartProblem(
            f"the operator's account lacks rights: {'; '.join(missing)}. "
            "Bind it to the role of the Helm chart, or start the operator with --namespace where it has them"
        )


async def _lacks(
    client: Client, resource: Resource, verb: str, namespace: str | None, subresource: str | None = None, name: str = ""
) -> str | None:
    attributes = {"group": resource.group, "version": resource.version, "resource": resource.plural, "verb": verb}
    attributes |= {"namespace": namespace or "", "subresource": subresource or "", "name": name}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    answer = await client.review_access(review)
    if answer["status"]["allowed"]:
        return None
    what = resource.plural if subresource is None else f"{resource.plural}/{subresource}"
    return f"{verb} {what}" + (f" in namespace {namespace}" if namespace is not None else "")
