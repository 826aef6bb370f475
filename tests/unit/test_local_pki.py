"""Certificates of the local cluster, as the TLS library sees them."""

import ssl
from pathlib import Path

import pytest
from cryptography import x509
from trainingjob_local.pki import CertificateAuthority, KeyPair


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority(tmp_path)


def shake_hands(authority: CertificateAuthority, serving: KeyPair, client: KeyPair, host: str) -> dict[str, object]:
    """The client's certificate as the server gets it, over a connection in memory."""
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.files.cert))
    server_context.verify_mode = ssl.CERT_REQUIRED
    server_context.load_cert_chain(serving.cert, serving.key)
    client_context = ssl.create_default_context(cafile=str(authority.files.cert))
    client_context.load_cert_chain(client.cert, client.key)
    for context in (server_context, client_context):
        context.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python does by itself since 3.13
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client_context.wrap_bio(down, up, server_hostname=host),
        server_context.wrap_bio(up, down, server_side=True),
    ]
    open_ends = list(ends)
    while open_ends:
        for end in list(open_ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            open_ends.remove(end)
    certificate = ends[1].getpeercert()
    assert certificate is not None
    return certificate


@pytest.mark.parametrize("host", ["10.244.0.1", "node-0"])
def test_a_client_is_known_by_user_and_group_to_a_server_with_the_right_name(
    authority: CertificateAuthority, host: str
) -> None:
    serving = authority.serving("kubelet-node-0", ["10.244.0.1", "node-0"])
    certificate = shake_hands(authority, serving, authority.client("system:node:node-0", "system:nodes"), host)
    assert certificate["subject"] == ((("organizationName", "system:nodes"),), (("commonName", "system:node:node-0"),))


def test_a_server_under_another_name_is_refused(authority: CertificateAuthority) -> None:
    serving = authority.serving("kubelet-node-0", ["node-0"])
    with pytest.raises(ssl.SSLCertVerificationError, match="node-1"):
        shake_hands(authority, serving, authority.client("admin", "system:masters"), "node-1")


def test_a_serving_certificate_does_not_open_the_api(authority: CertificateAuthority) -> None:
    serving = authority.serving("kubelet-node-0", ["node-0"])
    with pytest.raises(ssl.SSLError, match=r"unsuitable certificate purpose|unsupported certificate"):
        shake_hands(authority, serving, serving, "node-0")


def test_private_keys_are_the_owners_alone(authority: CertificateAuthority) -> None:
    pair = authority.client("admin", "system:masters")
    assert pair.key.stat().st_mode & 0o077 == 0
    assert x509.load_pem_x509_certificate(pair.cert.read_bytes()).issuer.rfc4514_string() == "CN=trainingjob-local-ca"
