"""The Helm chart, rendered by a real Helm and judged by a real API server."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.chart import CHART, RELEASE, allowed, install_account, render
from support.operator_process import Operator
from support.runs import wait_until
from trainingjob_local.cluster import LocalCluster
from trainingjob_operator.kube.api import LEASES
from trainingjob_operator.kube.preflight import LEASE_RIGHTS, OPTIONAL_RIGHTS, RIGHTS
from trainingjob_operator.options import parse

Manifests = list[dict[str, Any]]
ACCOUNT = "system:serviceaccount:{namespace}:" + RELEASE


def of_kind(manifests: Manifests, kind: str) -> Manifests:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def granted(rules: Manifests) -> set[tuple[str, str, str]]:
    """(group, resource, verb) of a role's rules."""
    return {
        triple for rule in rules for triple in itertools.product(rule["apiGroups"], rule["resources"], rule["verbs"])
    }


def needed() -> set[tuple[str, str, str]]:
    return {
        (resource.group, f"{resource.plural}/{subresource}" if subresource else resource.plural, verb)
        for resource, subresource, verbs in (*RIGHTS, *OPTIONAL_RIGHTS)
        for verb in verbs
    }


def test_the_chart_brings_the_generated_crd_and_keeps_it_on_uninstall() -> None:
    generated = yaml.safe_load((CHART.parents[1] / "crds" / "trainingjobs.trainingjob.io.yaml").read_text())
    (crd,) = of_kind(render("ops"), "CustomResourceDefinition")
    assert crd["spec"] == generated["spec"]
    assert crd["metadata"]["name"] == generated["metadata"]["name"]
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert of_kind(render("ops", {"crd": {"install": False}}), "CustomResourceDefinition") == []


def test_the_role_grants_exactly_what_the_operator_does() -> None:
    (role,) = [role for role in of_kind(render("ops"), "ClusterRole") if role["metadata"]["name"] == RELEASE]
    assert granted(role["rules"]) == needed()


def test_watched_namespaces_get_a_role_each_and_nothing_is_granted_cluster_wide() -> None:
    manifests = render("ops", {"watchNamespaces": ["team-a", "team-b"]})
    roles = [role for role in of_kind(manifests, "Role") if role["metadata"]["name"] == RELEASE]
    assert [role["metadata"]["namespace"] for role in roles] == ["team-a", "team-b"]
    assert all(granted(role["rules"]) == needed() for role in roles)
    assert of_kind(manifests, "ClusterRoleBinding") == []
    assert {binding["subjects"][0]["namespace"] for binding in of_kind(manifests, "RoleBinding")} == {"ops"}


def test_of_leases_it_may_use_its_own_in_its_own_namespace() -> None:
    values = {"watchNamespaces": ["team-a"], "fullnameOverride": "mine"}
    manifests = render("ops", values)
    (role,) = [role for role in of_kind(manifests, "Role") if role["metadata"]["name"] == "mine-lease"]
    assert role["metadata"]["namespace"] == "ops"
    assert granted(role["rules"]) == {(LEASES.group, LEASES.plural, verb) for verb in LEASE_RIGHTS}
    assert [rule["resourceNames"] for rule in role["rules"] if "create" not in rule["verbs"]] == [["mine"]]
    (deployment,) = of_kind(manifests, "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert parse(container["args"]).lease == ("ops", "mine")


def test_two_replicas_are_kept_apart_and_are_not_evicted_together() -> None:
    manifests = render("ops")
    (deployment,), (budget,) = of_kind(manifests, "Deployment"), of_kind(manifests, "PodDisruptionBudget")
    assert deployment["spec"]["replicas"] == 2
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    (spread,) = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
    for selector in (budget["spec"]["selector"], spread["labelSelector"], deployment["spec"]["selector"]):
        assert selector["matchLabels"].items() <= labels
    assert budget["spec"]["maxUnavailable"] == 1
    assert of_kind(render("ops", {"podDisruptionBudget": {"enabled": False}}), "PodDisruptionBudget") == []
    zones = [{"topologyKey": "topology.kubernetes.io/zone", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}]
    (deployment,) = of_kind(render("ops", {"topologySpreadConstraints": zones}), "Deployment")
    assert deployment["spec"]["template"]["spec"]["topologySpreadConstraints"] == zones


def test_the_deployments_arguments_are_the_operators() -> None:
    values = {
        "trainerImage": "registry.example.com/trainer:1",
        "watchNamespaces": ["team-a", "team-b"],
        "progressInterval": 7.5,
        "resync": 60,
        "metrics": {"port": 9000},
    }
    (deployment,) = of_kind(render("ops", values), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    options = parse(container["args"])
    assert options.trainer_image == "registry.example.com/trainer:1"
    assert options.namespaces == ("team-a", "team-b")
    assert (options.progress_interval, options.resync) == (7.5, 60)
    assert options.metrics_port == container["ports"][0]["containerPort"] == 9000
    assert options.log_format == "json"


def test_prometheus_and_grafana_are_told_what_to_look_at_where_that_is_asked_for() -> None:
    kinds = {"PodMonitor", "PrometheusRule"}
    assert not kinds & {manifest["kind"] for manifest in render("ops")}
    asked = {"create": True, "labels": {"release": "prometheus"}}
    manifests = render("ops", {"metrics": {"podMonitor": asked, "alerts": asked}})
    (monitor,), (alerts,), (deployment,) = (
        of_kind(manifests, k) for k in ("PodMonitor", "PrometheusRule", "Deployment")
    )
    pods = deployment["spec"]["template"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in [port["name"] for port in pods["spec"]["containers"][0]["ports"]]
    assert endpoint["honorLabels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= pods["metadata"]["labels"].items()
    assert alerts["spec"] == yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
    assert not of_kind(manifests, "ConfigMap")
    (board,) = of_kind(render("ops", {"metrics": {"dashboard": asked}}), "ConfigMap")
    assert json.loads(board["data"]["trainingjobs.json"]) == json.loads(
        (CHART / "files" / "dashboard.json").read_text()
    )
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    for manifest in (monitor, alerts, board):
        assert manifest["metadata"]["labels"]["release"] == "prometheus"


def test_common_labels_are_on_all_that_the_chart_makes() -> None:
    manifests = render("ops", {"commonLabels": {"team": "ml"}})
    (deployment,) = of_kind(manifests, "Deployment")
    for made in (*manifests, deployment["spec"]["template"]):
        assert made["metadata"]["labels"]["team"] == "ml"
    assert "team" not in deployment["spec"]["selector"]["matchLabels"], "which never changes"


def test_names_fit_however_long_the_release_is_called() -> None:
    for manifest in render("ops", {"fullnameOverride": 70 * "n"}):
        assert len(manifest["metadata"]["name"]) <= 63


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"replicas": 0}, "replicas"),
        ({"replica": 2}, "replica"),
        ({"watchNamespaces": "team-a"}, "watchNamespaces"),
        ({"progressInterval": 0}, "progressInterval"),
        ({"log": {"level": "loud"}}, "level"),
        ({"trainerImage": "trainer: 1"}, "trainerImage"),
        ({"image": {"repository": "registry.example.com/operator:1"}}, "repository"),
        ({"image": {"tag": "operator:1"}}, "tag"),
        ({"serviceAccount": {"create": False}}, "serviceAccount.name is needed"),
    ],
)
def test_wrong_values_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        render("ops", values)


def test_the_api_server_takes_every_manifest(cluster: LocalCluster, namespace: str) -> None:
    manifests = render(namespace)
    text = yaml.safe_dump_all(manifests)
    answer = cluster.kubectl(
        "apply", "--server-side", "--dry-run=server", "--force-conflicts", "--validate=strict", "-f", "-", stdin=text
    )
    assert len(answer.splitlines()) == len(manifests)


def test_the_operators_pod_passes_pod_security_restricted(cluster: LocalCluster, namespace: str) -> None:
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    cluster.kubectl("create", "serviceaccount", RELEASE, "--namespace", namespace)
    (deployment,) = of_kind(render(namespace), "Deployment")
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "operator", "namespace": namespace},
        "spec": deployment["spec"]["template"]["spec"],
    }
    cluster.kubectl("create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(pod))


@pytest.fixture
def kubeconfig(cluster: LocalCluster, namespace: str) -> Path:
    return install_account(cluster, namespace, {"watchNamespaces": [namespace]})


def test_the_accounts_token_opens_what_the_role_says_and_nothing_else(
    cluster: LocalCluster, kubeconfig: Path, namespace: str
) -> None:
    who = cluster.kubectl(
        "--kubeconfig", str(kubeconfig), "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"
    )
    assert who == ACCOUNT.format(namespace=namespace)
    assert allowed(cluster, kubeconfig, "create", "pods", namespace)
    assert allowed(cluster, kubeconfig, "create", "secrets", namespace)
    assert not allowed(cluster, kubeconfig, "get", "secrets", namespace)
    assert not allowed(cluster, kubeconfig, "create", "pods", "default")


def test_an_operator_with_the_charts_account_leads(
    cluster: LocalCluster, kubeconfig: Path, namespace: str, tmp_path: Path
) -> None:
    flags = ("--namespace", namespace, "--lease-namespace", namespace)
    operator = Operator(kubeconfig, tmp_path / "operator.log", *flags, elect=True)
    operator.start()
    try:
        wait_until("it leads", lambda: "trainingjob_operator_leader 1.0" in operator.metrics())
    finally:
        operator.stop()
