"""Child processes that end with their parent and whose log tells why they ended."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from trainingjob_local import linux

START_SECONDS = 180.0
"""After which a component that is not ready never will be. On an idle machine it takes one or two."""


class StartError(RuntimeError):
    """A component did not come up, or has ended; the message ends with its log's tail."""


class Component:
    """One server process, its output in a log file.

    directory: where it runs. own_tmp: it sees a /tmp of its own, in which there is nothing but `directory`, if that
    lies in /tmp.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        log: Path,
        env: dict[str, str] | None = None,
        *,
        directory: Path | None = None,
        own_tmp: bool = False,
    ) -> None:
        self.name = name
        self.log = log
        # The program is opened before /tmp is covered: it may lie there, as in a clone in /tmp.
        with log.open("ab") as output, Path(command[0]).open("rb") as program:
            # Started from the main thread only: the parent-death signal follows the thread that forks.
            self._process = subprocess.Popen(
                [str(part) for part in command],
                executable=f"/proc/self/fd/{program.fileno()}" if own_tmp else None,
                pass_fds=[program.fileno()] if own_tmp else [],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                preexec_fn=_with_own_tmp if own_tmp else linux.die_with_parent,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def check(self) -> None:
        """StartError if the process has ended."""
        if not self.alive:
            raise StartError(f"{self.name} ended with exit code {self._process.returncode}:\n{self._tail()}")

    def wait_ready(self, probe: Callable[[], bool]) -> None:
        """Wait until `probe` is true; StartError if the process ends or the time is over before."""
        deadline = time.monotonic() + START_SECONDS
        while not probe():
            self.check()
            if time.monotonic() > deadline:
                raise StartError(f"{self.name} is not ready after {START_SECONDS:.0f} s:\n{self._tail()}")
            time.sleep(0.05)

    def signal(self, number: signal.Signals) -> None:
        if self.alive:
            self._process.send_signal(number)

    def stop(self, seconds: float = 5) -> None:
        """SIGTERM, and SIGKILL after `seconds`."""
        self.signal(signal.SIGTERM)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


def _with_own_tmp() -> None:
    linux.die_with_parent()
    directory = Path.cwd()
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("tmpfs", "/tmp", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=1777")
    directory.mkdir(parents=True, exist_ok=True)
    linux.mount(".", directory, None, linux.MS_BIND)  # "." is still the directory from before
    os.chdir(directory)
