"""Runs the load generator, `leveret perf`."""

import json
import subprocess

from .brokers import Failed


def command(binary, broker, options):
    out = [str(binary), "perf", "--uri", broker.uri, *options.split()]
    if broker.pid:
        out += ["--broker-pid", str(broker.pid)]
    return [*out, "--json"]


def documented(options):
    """The command as the documents show it."""
    uri = "amqp://127.0.0.1:PORT/%2F"
    return " ".join(f"leveret perf --uri {uri} {options} --broker-pid PID --json".split())


def run(binary, broker, options, seconds):
    """What it found; it may take so long besides what it needs for itself."""
    limit = seconds + 180
    try:
        done = subprocess.run(
            command(binary, broker, options), capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"leveret perf did not end {limit:g} s after its start") from None
    return parsed(done.returncode, done.stdout, done.stderr)


class Background:
    """A run beside others, for a `with` block."""

    def __init__(self, binary, broker, options):
        self.command = command(binary, broker, options)
        self.process = None

    def __enter__(self):
        pipe = subprocess.PIPE
        # What it says of its progress fits into the pipe.
        self.process = subprocess.Popen(self.command, stdout=pipe, stderr=pipe, text=True)
        return self

    def is_running(self):
        return self.process.poll() is None

    def finish(self, seconds):
        """Waits for its end; what it found."""
        try:
            out, errors = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"leveret perf did not end within {seconds:g} s") from None
        return parsed(self.process.returncode, out, errors)

    def await_end(self, seconds):
        """Waits for its end, whatever it found."""
        try:
            self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"leveret perf did not end within {seconds:g} s") from None

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


def parsed(code, out, errors):
    if code != 0:
        lines = errors.strip().splitlines() or ["leveret perf failed without a word"]
        # Of options that it does not take, the first line says more than the last.
        raise Failed(next((line for line in lines if line.startswith("error")), lines[-1]))
    return json.loads(out)
