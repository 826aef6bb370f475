"""Whether the operator can work at all: the CRD is there and new enough, and its account has the rights it needs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Sequence
from itertools import chain
from typing import Any

from trainingjob_operator.api.served import refused_of_status

from .api import (
    CONFIG_MAPS,
    EVENTS,
    LEASES,
    NAMESPACES,
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

logger = logging.getLogger(__name__)

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


async def check(
    client: Client, namespaces: Sequence[str | None], lease: tuple[str, str] | None
) -> tuple[str | None, ...]:
    """Those of the namespaces where jobs can be worked on (None: all), because all rights are granted there.

    Of several, one that was deleted with its roles, or that is misspelt, must not stop the work in the others: it is
    left out, and the log says so. lease: namespace and name of the lease, if one is used. Raises `StartProblem` if the
    CRD is not installed or older than the operator, if the lease cannot be used, or if nothing is left.
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
        raise StartProblem(f"cannot list {TRAINING_JOBS.plural}: {error}") from error
    try:
        await _check_crd(client)
        missing = await missing_rights(client, namespaces)
        lacks = await _lacks_for_lease(client, *lease) if lease is not None else []
        usable = tuple(namespace for namespace in namespaces if not missing[namespace])
        if lacks or not usable:
            raise StartProblem(
                f"the operator's account lacks rights: {'; '.join([*chain(*missing.values()), *lacks])}. "
                "Bind it to the role of the Helm chart, or start the operator with --namespace where it has them"
            )
        for namespace, rights in missing.items():
            if rights:
                why = f"it does not exist, or the operator's account lacks rights: {'; '.join(rights)}"
                logger.error("nothing is done in namespace %s: %s", namespace, why)
        for namespace in usable:
            if namespace is not None and not await _exists(client, namespace):
                logger.warning("namespace %s (--namespace) does not exist: is it misspelt?", namespace)
    except ApiError as error:
        raise StartProblem(f"cannot ask for the CRD's schema and the operator's rights: {error}") from error
    return usable


async def _check_crd(client: Client) -> None:
    schema = await client.schema(TRAINING_JOBS)
    refused = refused_of_status(schema["properties"]["status"]) if schema is not None else []
    if refused:
        raise StartProblem(
            f"the CRD is older than this operator, whose status it would not take ({', '.join(refused[:8])}): "
            "upgrade it first (kubectl apply -f crds/ of the operator's version, or the Helm chart with crd.install)"
        )


async def missing_rights(client: Client, namespaces: Sequence[str | None]) -> dict[str | None, list[str]]:
    """What the operator's account may not do in each of these namespaces (None: in all), but has to."""
    optional = [right for right in OPTIONAL_RIGHTS if await client.serves(right[0])]
    found = {}
    for namespace in namespaces:
        found[namespace] = await _lacking(
            _lacks(client, resource, verb, namespace, subresource)
            for resource, subresource, verbs in (*RIGHTS, *optional)
            for verb in verbs
        )
    return found


async def _lacks_for_lease(client: Client, namespace: str, name: str) -> list[str]:
    # What may be created cannot be named in a role.
    names = [("" if verb == "create" else name, verb) for verb in LEASE_RIGHTS]
    return await _lacking(_lacks(client, LEASES, verb, namespace, name=name) for name, verb in names)


async def _lacking(questions: Iterable[Coroutine[Any, Any, str | None]]) -> list[str]:
    return [lack for lack in await asyncio.gather(*questions) if lack]


async def _exists(client: Client, namespace: str) -> bool:
    """Whether it does; an account that may not know learns nothing."""
    try:
        await client.get(NAMESPACES, None, namespace)
    except NotFound:
        return False
    except Forbidden:
        pass
    return True


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
