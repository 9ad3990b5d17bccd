"""AMX's table on an emulated machine: Linux on Bochs's Sapphire Rapids, whose instructions and tiles are Bochs's own.

    python tests/amx/run.py --bochs DIR                            as root, with cvit built in place; DIR: the source
                                                                   of Bochs 3.0, unpacked
    python tests/amx/run.py --bochs DIR tests/test_amx.py ...      these tests instead

Here Linux grants the permission for tiles, allocates their room at a thread's first use, and saves and restores them
when it switches threads, none of which tests with trapped instructions see (tests/bf16/trapped.c). In the guest run the
files of the suite that are about AMX's bits, and tests/aarch64/models.py: each of its bf16 arrays must have the same
bits on every table, and those of this machine.

Bochs 3.0 lacks what Linux wants of tiles; bochs.patch adds it (XFD) and mends how it saves them. Needs debootstrap,
grub-mkrescue (grub-common, grub-pc-bin, xorriso, mtools), cpio, a compiler for C++, and Debian's archive. All that is
built is under build/amx: Bochs, Debian 13 with its kernel, Python and NumPy, and cvit, compiled there with its GCC.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import Cython

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
HOME = ROOT / "build" / "amx"
BOCHS, SYSTEM, DISC = HOME / "bochs", HOME / "system", HOME / "disc"
PACKAGES = [
    "linux-image-amd64", "busybox-static", "gcc", "libc6-dev", "python3", "python3-dev", "python3-setuptools",
    "python3-numpy", "python3-pytest", "python3-hypothesis", "python3-threadpoolctl", "python3-safetensors",
    "bochsbios", "vgabios",
]  # fmt: skip
OPTIONS = [
    "--enable-cpu-level=6", "--enable-x86-64", "--enable-avx", "--enable-evex", "--enable-amx", "--enable-smp",
    "--enable-pci", "--enable-protection-keys", "--enable-cet", "--enable-memtype", "--enable-perfmon",
    "--enable-all-optimizations", "--with-nogui", "--disable-docbook",
]  # fmt: skip
TESTS = ["tests/test_bf16_machines.py", "tests/test_amx.py"]
# What of Debian the guest can do without: it runs from memory.
LEFT_OUT = [
    "boot", "dev/*", "proc/*", "sys/*", "usr/lib/modules", "usr/share/doc", "usr/share/man", "usr/share/locale",
    "usr/lib/gcc/*/*/lto*", "var", "root/cvit/.git",
]  # fmt: skip
# no5lvl: Bochs leaves its system management mode with five levels of page tables only by an error.
KERNEL_OPTIONS = "console=ttyS0 quiet panic=1 nokaslr no5lvl hpet=disable no_timer_check tsc=reliable mitigations=off"
# info: Bochs tells its speed from a signal's handler, and waits for itself if that meets a line half written.
BOCHSRC = f"""\
cpu: model=sapphire_rapids, count=1, ips=100000000, reset_on_triple_fault=0
memory: guest=2048, host=2048
romimage: file={SYSTEM}/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file={SYSTEM}/usr/share/vgabios/vgabios.bin
pci: enabled=1, chipset=i440fx
ata0-master: type=cdrom, path={HOME}/disc.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev={HOME}/serial.txt
clock: sync=none, time0=utc
log: {HOME}/bochs.log
panic: action=fatal
error: action=report
info: action=ignore
display_library: nogui
"""
INIT = """\
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 NO_COLOR=1 PYTHONPATH=/root/cvit
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/shm
mount -t tmpfs shm /dev/shm
exec > /dev/ttyS0 2>&1
uname -r
grep -o 'amx[a-z0-9_]*\\|avx512_bf16' /proc/cpuinfo | sort | uniq -c
cd /root/cvit
python3 -c "from cvit.engine import team; print('tables:', *team.isa_names())"
TESTS
python3 tests/aarch64/models.py /tmp/models.npz bf16 && python3 tests/amx/digests.py /tmp/models.npz
echo "ended at $(cut -d' ' -f1 /proc/uptime) s of the guest's time"
sleep 1
busybox poweroff -f
"""


def run(*command, **more):
    done = subprocess.run(list(map(str, command)), text=True, **more)
    if done.returncode:
        sys.exit(f"{command[0]} failed: {' '.join(map(str, command))}\n{done.stdout or ''}{done.stderr or ''}")
    return done.stdout


def in_guest(command):
    """Here, in the guest's files."""
    return run("chroot", SYSTEM, "sh", "-ec", command)


def build_bochs(source):
    """Bochs with the patch, once."""
    if (BOCHS / "bochs").exists():
        return
    shutil.rmtree(BOCHS, ignore_errors=True)
    shutil.copytree(source, BOCHS)
    run("patch", "-s", "-p1", "-i", HERE / "bochs.patch", cwd=BOCHS)
    flags = "-O2 -fno-strict-aliasing -fwrapv"
    quiet = dict(cwd=BOCHS, capture_output=True)
    run("./configure", *OPTIONS, env=os.environ | {"CFLAGS": flags, "CXXFLAGS": flags}, **quiet)
    run("make", f"-j{os.cpu_count()}", **quiet)


def build_guest():
    """Debian, once, and cvit's sources of now, compiled in it."""
    if not (SYSTEM / "usr/bin/python3").exists() or (SYSTEM / "debootstrap").exists():  # not begun, or not ended
        shutil.rmtree(SYSTEM, ignore_errors=True)
        run(
            "debootstrap",
            "--variant=minbase",
            f"--include={','.join(PACKAGES)}",
            "trixie",
            SYSTEM,
            stdout=subprocess.DEVNULL,
        )
    copied = SYSTEM / "root" / "cvit"
    tracked = run("git", "ls-files", "-co", "--exclude-standard", "-z", cwd=ROOT, capture_output=True).split("\0")
    for name in filter(None, tracked):
        (copied / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy2(ROOT / name, copied / name)
    # Debian's Cython is too old; that of this environment is Python, too.
    packages, cython = SYSTEM / "usr/lib/python3/dist-packages", Path(Cython.__file__).parent
    shutil.copytree(cython, packages / "Cython", ignore=shutil.ignore_patterns("*.so"), dirs_exist_ok=True)
    shutil.copy2(cython.parent / "cython.py", packages)
    in_guest("cd /root/cvit && python3 setup.py -q build_clib build_ext --inplace > /tmp/build.txt 2>&1")


def make_disc(tests):
    """A disc with the kernel and all of the guest's files, which become its memory's."""
    calls = "\n".join(f"python3 -m pytest -q -p no:cacheprovider {test} || echo {test} has failed" for test in tests)
    (SYSTEM / "init").write_text(INIT.replace("TESTS", calls))
    (SYSTEM / "init").chmod(0o755)
    boot = DISC / "boot"
    (boot / "grub").mkdir(parents=True, exist_ok=True)
    (kernel,) = (SYSTEM / "boot").glob("vmlinuz-*")
    shutil.copy(kernel, boot / "vmlinuz")
    (boot / "grub" / "grub.cfg").write_text(
        f"set timeout=0\nmenuentry cvit {{\n linux /boot/vmlinuz {KERNEL_OPTIONS}\n initrd /boot/initrd\n}}\n"
    )
    guest = HOME / "guest"
    shutil.rmtree(guest, ignore_errors=True)
    guest.mkdir()
    excluded = " ".join(f"--exclude='./{name}'" for name in LEFT_OUT)
    run("sh", "-ec", f"tar -C '{SYSTEM}' {excluded} -c . | tar -C '{guest}' -x")
    for name in ("dev", "proc", "sys", "var/tmp"):
        (guest / name).mkdir(parents=True, exist_ok=True)
    run("sh", "-ec", f"find . | cpio -o -H newc --quiet > '{boot}/initrd'", cwd=guest)
    shutil.rmtree(guest)
    run("grub-mkrescue", "-o", HOME / "disc.iso", DISC, capture_output=True)


def boot(seconds):
    """What the guest says, as it says it."""
    said = HOME / "serial.txt"
    said.write_text("")
    (HOME / "bochsrc").write_text(BOCHSRC)
    machine = subprocess.Popen(
        [BOCHS / "bochs", "-q", "-f", HOME / "bochsrc"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    end, shown = time.monotonic() + seconds, 0
    try:
        while machine.poll() is None and time.monotonic() < end:
            time.sleep(1)
            text = said.read_text(errors="replace")
            print(text[shown:], end="", flush=True)
            shown = len(text)
    finally:
        machine.kill()
    return said.read_text(errors="replace")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="*", default=TESTS, metavar="tests/test_….py", help="run these instead")
    parser.add_argument("--bochs", required=True, metavar="DIR", help="the source of Bochs 3.0")
    parser.add_argument("--seconds", type=float, default=7200, help="the machine is stopped after these")
    given = parser.parse_args()
    if os.geteuid():
        sys.exit("debootstrap and chroot want root")
    if not given.bochs or not Path(given.bochs, "cpu", "avx", "amx.cc").exists():
        sys.exit(f"--bochs must be the folder of Bochs 3.0's source, got {given.bochs!r}")
    for tool in ("debootstrap", "grub-mkrescue", "cpio", "patch"):
        if not shutil.which(tool):
            sys.exit(f"there is no {tool} here")
    HOME.mkdir(parents=True, exist_ok=True)
    build_bochs(Path(given.bochs))
    build_guest()
    make_disc(given.tests)
    said = boot(given.seconds)
    ours = dict(cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    run(sys.executable, "tests/aarch64/models.py", HOME / "here.npz", "bf16", **ours)
    here = run(sys.executable, "tests/amx/digests.py", HOME / "here.npz", capture_output=True, **ours)
    print("this machine's:", here, end="")
    digest = here.split()[-1]
    if "tables: portable avx2 avx512 amx" not in said or digest not in said or " failed" in said:
        sys.exit("the emulated machine has failed")


if __name__ == "__main__":
    main()
