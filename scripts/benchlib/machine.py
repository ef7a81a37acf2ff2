"""What the kernel knows: of processes, of the machine, and of this script's own limits."""

import os
import pathlib
import platform
import resource
import signal
import subprocess
import sys
import time

from .brokers import Failed


def cpu_s(broker):
    """CPU time of a process so far: CPUCLOCK_SCHED of the kernel's clock ids for processes."""
    return time.clock_gettime((~broker.pid << 3) | 2)


def resident(broker):
    for line in pathlib.Path(f"/proc/{broker.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise Failed("no VmRSS")


def await_true(what, check, seconds=60, pause=0.02):
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise Failed(f"not in {seconds} s: {what}")
        time.sleep(pause)


def cores_in_use(seconds=0.5):
    """How many cores the machine's work takes now, by all its processes."""

    def busy_ticks():
        ticks = [int(word) for word in pathlib.Path("/proc/stat").read_text().split()[1:9]]
        return sum(ticks) - ticks[3] - ticks[4]

    before, began = busy_ticks(), time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - began
    return (busy_ticks() - before) / os.sysconf("SC_CLK_TCK") / passed


def await_quiet(seconds):
    """Waits, for so long at most, until nothing else is at work; returns how much is."""
    deadline = time.monotonic() + seconds
    while (others := cores_in_use()) > 0.1 and time.monotonic() < deadline:
        time.sleep(1)
    return others


def machine():
    """The machine in a line."""
    model = memory = "unknown"
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            memory = f"{int(line.split()[1]) / 1024**2:.1f} GiB"
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {model}, {memory} of memory, Linux {platform.release()}"


def file_system(folder):
    command = ["findmnt", "--noheadings", "--output", "FSTYPE", "--target", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    return done.stdout.strip() or "unknown"


def prepare():
    """Lets this process and its children open what they may, and makes a signal an exception:
    stopping by one must stop the brokers, too."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def run(main):
    """Calls a script's `main`; Ctrl-C ends it without a trace."""
    prepare()
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)


def release_binary(root):
    """Where `make build` puts the program."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", root / "target"))
    return target / "release" / "leveret"
