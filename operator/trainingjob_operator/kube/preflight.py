"""Whether the operator can work at all: the CRD is there, and its account has the rights that it needs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from .api import (
    CONFIG_MAPS,
    EVENTS,
    POD_GROUPS,
    PODS,
    SECRETS,
    SERVICES,
    TRAINING_JOBS,
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
"""All that the operator ever does, by resource and subresource. On Secrets it may only create."""
OPTIONAL_RIGHTS: tuple[tuple[Resource, str | None, tuple[str, ...]], ...] = (
    (POD_GROUPS, None, ("get", "create", "patch", "delete")),
)
"""And where the API server serves these resources."""


class StartProblem(Exception):
    """Why the operator cannot start, and what to do about it."""


async def check(client: Client, namespaces: Sequence[str | None]) -> None:
    """Raise `StartProblem` unless the CRD is installed and all rights are granted in the namespaces (None: in all)."""
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
            _lacks(client, resource, subresource, verb, namespace)
            for namespace in namespaces
            for resource, subresource, verbs in (*RIGHTS, *optional)
            for verb in verbs
        ]
        missing = [lack for lack in await asyncio.gather(*questions) if lack]
    except ApiError as error:
        raise StartProblem(f"cannot ask for the operator's rights: {error}") from error
    if missing:
        raise StartProblem(
            f"the operator's account lacks rights: {'; '.join(missing)}. "
            "Bind it to the role of the Helm chart, or start the operator with --namespace where it has them"
        )


async def _lacks(
    client: Client, resource: Resource, subresource: str | None, verb: str, namespace: str | None
) -> str | None:
    attributes = {"group": resource.group, "version": resource.version, "resource": resource.plural, "verb": verb}
    if subresource is not None:
        attributes["subresource"] = subresource
    if namespace is not None:
        attributes["namespace"] = namespace
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
