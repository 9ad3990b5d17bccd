"""Several hosts on one machine, for runs over a network: network namespaces, and a switch between them that is a
thread.

Each host has a network, a name, mounts and shared memory of its own, so that MPI takes it for a machine; the CPUs and
the processes are this machine's. What a host sends comes out of a TUN device, where the switch reads whole IP packets,
and writes them to the receiver's when it is time: after a delay, at a rate, some of them never. (Linux has netem for
that, which not every kernel has; a switch of our own also counts bytes.) Needs root, iproute2 and util-linux.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import random
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

from mpi_runs import ENVIRONMENT, launcher

DEVICE = "net0"  # of every host
MTU = 65000  # bytes of a packet: few packets are little work for the switch
MOST_QUEUED = 0.25  # seconds that a packet may wait for its turn on a line, then it is dropped
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
AT_ONCE = 64  # packets that are read before others are written
LONGEST = 120.0  # seconds of anything that is to end by itself
# Each rank's output is its own; before, what is different about its host.
RANK = """
folder=$0; rank=$OMPI_COMM_WORLD_RANK
if [ -e $folder/$(hostname).sh ]; then . $folder/$(hostname).sh; fi
exec "$@" >$folder/$rank.out 2>$folder/$rank.err
"""
SETTINGS = {name: value for name, value in ENVIRONMENT.items() if "btl" not in name and "mapping" not in name}


class Switch(threading.Thread):
    """Carries IP packets between ports; `lines` says how.

    Attributes
    ----------
    sent : list of int
        Bytes that each host has sent, headers and repetitions included.
    packets, dropped : int
    connected : list of bool
        A host whose cable is pulled is not told: what it sends is lost.
    """

    def __init__(self, ports: list[int]):
        super().__init__(daemon=True)
        self._ports, self._alive = ports, [*ports]
        self._over = threading.Event()
        self._queue: list[tuple[float, int, int, bytes]] = []  # when, number, port, packet
        self._draw = random.Random(0)
        self.sent, self.packets, self.dropped = [0] * len(ports), 0, 0
        self.connected = [True] * len(ports)
        self.lines()

    def lines(self, delay: float = 0.0, rate: float = float("inf"), loss: float = 0.0) -> None:
        """Seconds from host to host, bytes/s of each host's line either way, share of the packets that is lost."""
        self._delay, self._rate, self._loss = delay, rate, loss
        self._out, self._in = [0.0] * len(self._ports), [0.0] * len(self._ports)  # until when a line is busy

    def run(self) -> None:
        while not self._over.is_set():
            pause = min(0.1, max(0.0, self._queue[0][0] - time.monotonic())) if self._queue else 0.1
            for fd in select.select(self._alive, [], [], pause)[0]:
                source = self._ports.index(fd)
                for _ in range(AT_ONCE):
                    try:
                        self._take(source, os.read(fd, 1 << 16))
                    except BlockingIOError:
                        break
                    except OSError:  # the host is gone
                        self._alive.remove(fd)
                        break
            now = time.monotonic()
            while self._queue and self._queue[0][0] <= now:
                _, _, port, packet = heapq.heappop(self._queue)
                with contextlib.suppress(OSError):  # a device that is down or gone
                    os.write(self._ports[port], packet)

    def _take(self, source: int, packet: bytes) -> None:
        """A packet on its way, or dropped."""
        target = packet[19] - 1  # 10.77.0.1 is the first host's
        if packet[0] >> 4 != 4 or not 0 <= target < len(self._ports):
            return
        now, seconds = time.monotonic(), len(packet) / self._rate
        self.packets += 1
        self.sent[source] += len(packet)
        there = max(max(now, self._out[source]) + seconds, self._in[target] + seconds)
        lost = not (self.connected[source] and self.connected[target]) or self._draw.random() < self._loss
        if lost or there - now > MOST_QUEUED + self._delay:
            self.dropped += 1
            return
        self._out[source], self._in[target] = max(now, self._out[source]) + seconds, there
        heapq.heappush(self._queue, (there + self._delay, self.packets, target, packet))

    def end(self) -> None:
        self._over.set()
        self.join()
        for fd in self._ports:
            os.close(fd)


class Hosts:
    """`count` hosts, h1 to hN, in a network of their own; a context.

    `folder` is for files of the hosts alone. `different_machines`: they have boot ids of their own, as machines do, so
    that cvit does not see that their CPUs are the same.
    """

    def __init__(self, count: int, folder: Path, different_machines: bool = True, mtu: int = MTU):
        self.names = [f"h{i + 1}" for i in range(count)]
        self._folder, self._different, self._mtu = folder, different_machines, mtu
        self._inits: list[subprocess.Popen] = []  # one process of each, which keeps its namespaces

    def __enter__(self) -> Hosts:
        addresses = [f"10.77.0.{i + 1} {name}\n" for i, name in enumerate(self.names)]
        (self._folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(addresses))
        ports = []
        try:
            for i, name in enumerate(self.names):
                self._inits.append(self._begun(i, name))
                ports.append(self._line(i))
            self._agent()
        except BaseException:
            self.__exit__()
            raise
        self.switch = Switch(ports)
        self.switch.start()
        return self

    def __exit__(self, *_) -> None:
        for name in self.names[: len(self._inits)]:
            self.kill(name)
            (self._folder / f"{name}.off").unlink(missing_ok=True)
        for init in self._inits:
            init.wait()
        if hasattr(self, "switch"):
            self.switch.end()

    def _begun(self, i: int, name: str) -> subprocess.Popen:
        """The first process of a host, once its namespaces are as they must be."""
        (self._folder / f"boot-{name}").write_text(f"{i:08x}-0000-0000-0000-000000000000\n")
        lines = [
            "set -e", f"hostname {name}", "ip link set lo up", f"mount --bind {self._folder}/hosts /etc/hosts",
            "mount -t tmpfs tmpfs /dev/shm",
            *([f"mount --bind {self._folder}/boot-{name} /proc/sys/kernel/random/boot_id"] * self._different),
            "echo there", "exec sleep infinity",
        ]  # fmt: skip
        command = ["unshare", "--net", "--uts", "--mount", "--ipc", "sh", "-c", "\n".join(lines)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "there\n", f"{name} has not begun"
        return process

    def _line(self, i: int) -> int:
        """The descriptor at the other end of a host's network device."""
        fd, device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK), f"cvit-{os.getpid()}-{i}"[-15:]
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TUN | IFF_NO_PI))
        subprocess.run(["ip", "link", "set", device, "netns", str(self._inits[i].pid), "name", DEVICE], check=True)
        for line in (f"addr add 10.77.0.{i + 1}/24 dev {DEVICE}", f"link set {DEVICE} mtu {self._mtu} up"):
            self.run(self.names[i], ["ip", *line.split()])
        return fd

    def _agent(self) -> None:
        """What Open MPI takes for ssh: HOST COMMAND..., in an environment of its own, as ssh's is."""
        cases = "\n".join(f"{name}) pid={init.pid};;" for name, init in zip(self.names, self._inits))
        lines = [
            "#!/bin/sh", "host=$1; shift", f"case $host in\n{cases}\nesac",
            "env -i HOME=$HOME PATH=/usr/bin:/bin:/usr/sbin:/sbin "
            'nsenter -t $pid --net --uts --mount --ipc --wdns="$PWD" -- sh -c "$*" || status=255',
            f"while [ -e {self._folder}/$host.off ]; do sleep 0.1; done",  # no word comes from there, not even an end
            "exit $status",
        ]  # fmt: skip
        self.agent = self._folder / "agent"
        self.agent.write_text("\n".join(lines) + "\n")
        self.agent.chmod(0o755)

    # -------------------------------------------------------------------------------------------------------- commands
    def inside(self, name: str, command: list) -> list[str]:
        """The command line that runs a command on a host."""
        pid = self._inits[self.names.index(name)].pid
        enter = ["nsenter", "-t", str(pid), "--net", "--uts", "--mount", "--ipc", f"--wdns={os.getcwd()}", "--"]
        return [*enter, *map(str, command)]

    def run(self, name: str, command: list) -> None:
        subprocess.run(self.inside(name, command), check=True)

    def processes(self, name: str) -> list[int]:
        """Of a host, all, the first one last."""
        init, found = self._inits[self.names.index(name)].pid, []
        try:
            here = os.stat(f"/proc/{init}/ns/net").st_ino
        except FileNotFoundError:  # it is gone
            return []
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{pid}/ns/net").st_ino == here and int(pid) != init:
                    found.append(int(pid))
        return [*found, init]

    def power_off(self, name: str) -> None:
        """Nothing says good-bye."""
        self.switch.connected[self.names.index(name)] = False
        (self._folder / f"{name}.off").touch()
        self.kill(name)

    def kill(self, name: str, how: int = signal.SIGKILL, all_of_it: bool = True) -> None:
        """All processes of a host at once; `all_of_it`: the first one too, with which its network goes."""
        for pid in self.processes(name)[: None if all_of_it else -1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)


class Run:
    """A command that mpiexec, on the first host, runs as `per_host` ranks on each host."""

    def __init__(self, hosts: Hosts, line: list, folder: Path, per_host: int = 1, count: int | None = None):
        self.hosts, self._folder = hosts, folder
        names = hosts.names[:count]
        self.size = per_host * len(names)
        for path in folder.glob("[0-9]*.*"):
            path.unlink()
        slots = ",".join(f"{name}:{per_host}" for name in names)
        command = [
            launcher(), "--prtemca", "plm_ssh_agent", hosts.agent, "--mca", "btl", "tcp,sm,self",
            "--mca", "btl_tcp_if_include", DEVICE, "--host", slots,
            "--map-by", f"ppr:{per_host}:node", "-n", self.size, "-x", "PYTHONPATH",
            "sh", "-c", RANK, folder, *line,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            hosts.inside(names[0], command), env={**os.environ, **SETTINGS}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def ended(self, timeout: float = LONGEST) -> int:
        """Its exit status, once it has ended by itself."""
        try:
            self.launcher_said, _ = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            print(self.told(), file=sys.stderr)
            raise AssertionError(f"the launcher had not ended after {timeout:g} s") from None
        return self.process.returncode

    def succeeded(self, timeout: float = LONGEST) -> str:
        """What rank 0 has printed, of a run that ended well, the others printing nothing."""
        status = self.ended(timeout)
        assert status == 0, f"status {status}\n{self.told()}"
        assert not any(self.output(rank) for rank in range(1, self.size)), self.told()
        return self.output(0)

    def output(self, rank: int, kind: str = "out") -> str:
        path = self._folder / f"{rank}.{kind}"
        return path.read_text() if path.exists() else ""

    def errors(self) -> list[str]:
        """What each rank has said of an error, but for MPI's own words on it."""
        return [
            "".join(line for line in self.output(rank, "err").splitlines(True) if line.startswith("cvit"))
            for rank in range(self.size)
        ]

    def ranks_on(self, name: str) -> list[int]:
        """The processes on a host that are ranks."""
        found = []
        for pid in self.hosts.processes(name):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(os.fsencode(sys.executable) + b"\0-m\0cvit"):
                    found.append(pid)
        return found

    def told(self) -> str:
        ranks = [f"rank {r}:\n{self.output(r)}{self.output(r, 'err')}" for r in range(self.size)]
        return "\n".join([*ranks, f"mpiexec:\n{getattr(self, 'launcher_said', '')}"])
