"""Counts the instructions that Leveret takes for a message.

Times on a machine that others use vary by tens of percents; the number of instructions hardly does,
so that a regression is seen in it. The processor's own counters are missing in most virtual
machines. So the broker runs below valgrind (cachegrind, without its caches), which counts those of
user space on any machine, twenty times as slow; the load generator does not. Two runs that differ
only in the number of messages give what one message takes, without the broker's start.
"""

import pathlib
import re
import shutil
import signal
import subprocess

from . import perf
from .brokers import Failed, Leveret

COUNTER = (
    "valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null",
)


def is_available():
    return shutil.which(COUNTER[0]) is not None


def per_message(binary, options, few, many):
    """For one message of a load that takes `--count`."""
    counts = [total(binary, options, count) for count in (few, many)]
    return (counts[1] - counts[0]) / (many - few)


def total(binary, options, count):
    """All instructions of a broker that is started, has so many messages, and is stopped."""
    with Leveret(binary, wrapper=COUNTER) as broker:
        perf.run(binary, broker, f"{options} --warmup 0 --count {count}", 120)
        broker.kill(signal.SIGTERM)
        try:
            broker.process.wait(60)
        except subprocess.TimeoutExpired:
            raise Failed("the broker does not stop below valgrind") from None
        output = pathlib.Path(broker.folder, "output.log").read_text(errors="replace")
    found = re.search(r"I +refs: +([0-9,]+)", output)
    if not found:
        raise Failed(f"valgrind counted nothing: {output[-300:]}")
    return int(found.group(1).replace(",", ""))
