"""How the local cluster comes by its programs: what is taken, and what is refused."""

import dataclasses
import hashlib
import tarfile
from pathlib import Path

import pytest
from trainingjob_local import binaries
from trainingjob_local.binaries import BinaryError, Program


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No assets, an empty PATH, an empty cache."""
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def program(path: Path, version: str) -> Path:
    """A program that tells its version."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {version}\n")
    path.chmod(0o755)
    return path


def published(directory: Path, content: bytes, *, member: str | None = None, checksum: str | None = None) -> Program:
    """etcd, as if it were published in `directory`."""
    directory.mkdir()
    file = directory / "etcd"
    file.write_bytes(content)
    if member:
        with tarfile.open(directory / "etcd.tar.gz", "w:gz") as tar:
            tar.add(file, arcname=member)
        file = directory / "etcd.tar.gz"
    digest = checksum or hashlib.sha256(file.read_bytes()).hexdigest()
    sums = directory / "SHA256SUMS"
    sums.write_text(f"{'0' * 64}  another.tar.gz\n{digest}  {file.name}\n")
    pinned = binaries.programs()["etcd"]
    return dataclasses.replace(pinned, url=file.as_uri(), checksum_url=sums.as_uri(), member=member)


def ensure(monkeypatch: pytest.MonkeyPatch, pinned: Program) -> Path:
    monkeypatch.setattr(binaries, "programs", lambda: {pinned.name: pinned})
    return binaries.ensure([pinned.name], say=lambda line: None)[pinned.name]


def test_the_assets_directory_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = program(tmp_path / "assets" / "etcd", "etcd Version: 1.0.0")
    program(tmp_path / "path" / "etcd", f"etcd Version: {binaries.ETCD[1:]}")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(named.parent))
    assert binaries.ensure(["etcd"]) == {"etcd": named}


def test_a_program_on_path_is_taken_if_its_version_fits(tmp_path: Path) -> None:
    fitting = program(tmp_path / "path" / "etcd", f"etcd Version: {binaries.ETCD[1:]}")
    assert binaries.ensure(["etcd"]) == {"etcd": fitting}


def test_a_program_on_path_of_another_version_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "path" / "etcd", "etcd Version: 3.5.21")
    found = ensure(monkeypatch, published(tmp_path / "site", b"official"))
    assert found.is_relative_to(tmp_path / "cache")


@pytest.mark.parametrize("member", [None, "etcd-v3/etcd"])
def test_a_download_is_verified_made_executable_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, member: str | None
) -> None:
    pinned = published(tmp_path / "site", b"official", member=member)
    found = ensure(monkeypatch, pinned)
    assert found.read_bytes() == b"official"
    assert found.stat().st_mode & 0o111
    (tmp_path / "site" / "SHA256SUMS").unlink()
    assert ensure(monkeypatch, pinned) == found


def test_a_download_with_a_wrong_checksum_is_refused_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = published(tmp_path / "site", b"tampered with", checksum="f" * 64)
    with pytest.raises(BinaryError, match="not used"):
        ensure(monkeypatch, pinned)
    assert not [file for file in (tmp_path / "cache").rglob("etcd*") if file.is_file()]


def test_what_is_published_without_checksums_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kwok = binaries.programs()["kwok"]
    assert (kwok.url, kwok.checksum_url) == (None, "")
    # Stands for the compiler: it says what it was asked to build, and where.
    go = tmp_path / "path" / "go"
    go.parent.mkdir()
    go.write_text(
        '#!/bin/sh\n[ "$1" = env ] && echo go1.26.0 && exit\n'
        'for last; do previous=$target; target=$last; done\necho "$PWD $last" > "$previous"\n'
    )
    go.chmod(0o755)
    assert ensure(monkeypatch, kwok).read_text().split() == [
        str(Path(binaries.__file__).parent / "gobuild" / "kwok"),
        "sigs.k8s.io/kwok/cmd/kwok",
    ]


def test_sources_are_fetched_ahead_if_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A benchmark needs them where there is no network any more."""
    program(tmp_path / "path" / "etcd", f"etcd Version: {binaries.ETCD[1:]}")
    program(tmp_path / "path" / "go", '$([ "$1" = env ] && echo go1.26.0 || echo "/modules/$4")')
    assert binaries.main(["--sources", "etcd"]) == 0
    assert "/modules/go.etcd.io/etcd/server/v3 (source)" in capsys.readouterr().err
