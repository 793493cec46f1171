"""A real Slurm cluster of two nodes on this machine: a controller, two slurmds and munge, all of them our processes.

The nodes are told apart by `NodeHostname` and `Port` (Slurm's multiple-slurmd support). Their names resolve to loopback
in a mount namespace of the cluster's own, so that nothing of the machine's is changed.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

NODES = ("node0", "node1")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "unshare")

CONF = """\
ClusterName=test
SlurmctldHost={hostname}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/linear
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=1,sched_interval=2
ReturnToService=2
SlurmdTimeout=10
SlurmctldTimeout=30
InactiveLimit=0
KillWait=30
MinJobAge=600
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
{nodes}
PartitionName=all Nodes=node[0-1] Default=YES MaxTime=INFINITE State=UP
"""


class SlurmCluster:
    """Start it with `with`; its processes are ended on the way out, and no others."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, dict[str, subprocess.Popen[bytes]]()
        self.conf = folder / "slurm.conf"
        self.environment = os.environ | {"SLURM_CONF": str(self.conf), "PATH": _path()}
        """Of the daemons and of the commands, whose jobs inherit it."""

    def __enter__(self) -> SlurmCluster:
        missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
        assert not missing, f"not installed: {missing}; `make slurm` installs Debian's packages"
        (self.folder / "state").mkdir(parents=True)
        ports = _free_ports(3)
        nodes = [
            f"NodeName={name} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port} CPUs=1 State=UNKNOWN"
            for name, port in zip(NODES, ports[1:], strict=True)
        ]
        self.conf.write_text(
            CONF.format(
                hostname=socket.gethostname(), controller_port=ports[0], folder=self.folder, nodes="\n".join(nodes)
            )
        )
        hosts = Path("/etc/hosts").read_text() + "".join(f"127.0.0.1 {name}\n" for name in NODES)
        (self.folder / "hosts").write_text(hosts)
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o600)
        self.folder.chmod(0o755)
        try:
            self._start_munge()
            self._start("slurmctld", "slurmctld", "-D", "-f", str(self.conf))
            for node in NODES:
                self.start_node(node)
            self.wait_for(lambda: self.run("sinfo", "-h", "-o", "%T").split() == ["idle"], "nodes to be idle")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if "slurmctld" in self.processes:  # step daemons leave their slurmd's process tree
            self.run("scancel", "--full", "--signal=KILL", "--user=root")
            self.wait_for(lambda: not self._steps(), "the steps' end", 60)
        for process in reversed(self.processes.values()):
            _end_tree(process)

    def start_node(self, name: str) -> None:
        """Start the node's slurmd."""
        (self.folder / f"spool-{name}").mkdir(exist_ok=True)
        self._start(f"slurmd-{name}", "slurmd", "-D", "-N", name, "-f", str(self.conf))

    def lose_node(self, name: str) -> None:
        """SIGKILL the node's slurmd, its step daemons and their processes, all at once as far as Slurm can tell."""
        steps = self._steps(name)
        assert steps, f"no step is running on {name}"
        for step in steps:
            for child in step.children(recursive=True):
                child.kill()
            step.kill()
        _end_tree(self.processes.pop(f"slurmd-{name}"), signal.SIGKILL)

    def _steps(self, *nodes: str) -> list[psutil.Process]:
        """This cluster's live step daemons; each has inherited the environment of the slurmd that forked it."""
        found = []
        marks = [{f"SLURM_CONF={self.conf}".encode(), f"TEST_NODE={node}".encode()} for node in nodes or NODES]
        for process in psutil.process_iter(["name"]):
            if process.info["name"] != "slurmstepd":
                continue
            with suppress(OSError):  # gone meanwhile
                # Its title overwrites the first bytes of its environment, where psutil would stop reading.
                environment = set(Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"))
                if any(mark <= environment for mark in marks):
                    found.append(process)
        return found

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """Run one of Slurm's commands; returns what it printed."""
        done = subprocess.run(command, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}{self.logs()}"
        return done.stdout

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float = 300) -> None:
        """Wait until the condition holds; fails with the daemons' logs."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}\n{self.logs()}"
            time.sleep(0.5)

    def logs(self) -> str:
        """The last lines of each daemon."""
        files = sorted(set(self.folder.glob("*.log")) - set(self.folder.glob("*.out.log")))
        return "".join(f"--- {file.name}\n" + "".join(file.open().readlines()[-8:]) for file in files)

    def _start_munge(self) -> None:
        at = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log"}
        options = [f"--{name}={self.folder / file}" for name, file in at.items()]
        options += [f"--seed-file={self.folder}/munge.seed", "--foreground", "--force", "--num-threads=1"]
        self._start("munged", "munged", *options)
        self.wait_for((self.folder / "munge.socket").exists, "munge", 20)

    def _start(self, name: str, *command: str) -> None:
        in_own_hosts = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"']
        environment = self.environment | {"TEST_NODE": name.removeprefix("slurmd-")}
        with (self.folder / f"{name}.out.log").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                [*in_own_hosts, str(self.folder / "hosts"), *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _end_tree(process: subprocess.Popen[bytes], with_signal: signal.Signals = signal.SIGTERM) -> None:
    """End the process and what it started."""
    try:
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        tree = []
    for one in tree:
        try:
            one.send_signal(with_signal)
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs(tree, timeout=10)
    for one in alive:
        one.kill()
    process.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
