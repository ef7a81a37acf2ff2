"""Brokers to measure: started on a free port and in a folder of their own, and stopped again."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.parse

RABBITMQ = pathlib.Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


class Failed(Exception):
    """A broker or a run that did not do what it should."""


class Broker:
    """A running broker: `name`, `pid` and `uri`; `stop` ends it and removes its folder. As a
    context it is started and stopped."""

    def __init__(self, name):
        self.name = name
        self.folder = tempfile.mkdtemp(prefix=f"bench-{name}-")
        self.process = None
        self.pid = 0
        self.port = 0

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    @property
    def uri(self):
        return f"amqp://127.0.0.1:{self.port}/%2F"

    def spawn(self, command, environment):
        log = open(os.path.join(self.folder, "output.log"), "wb")
        with log:
            self.process = subprocess.Popen(
                command,
                env=environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def output(self):
        path = pathlib.Path(self.folder, "output.log")
        return path.read_text(errors="replace")[-2000:] if path.exists() else ""

    def await_true(self, what, seconds, check):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            result = check()
            if result:
                return result
            if self.process.poll() is not None:
                raise Failed(f"{self.name} ended before it {what}:\n{self.output()}")
            time.sleep(0.05)
        raise Failed(f"{self.name} has not {what} after {seconds} s:\n{self.output()}")

    def stop(self):
        if self.process is not None:
            # The session is the broker's own, so its group holds the broker and its children.
            self.kill(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                pass
            self.kill(signal.SIGKILL)
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self, number):
        try:
            os.killpg(self.process.pid, number)
        except (ProcessLookupError, PermissionError):
            pass


class Leveret(Broker):
    """Leveret, with a store of its own or none. `wrapper` is a command that runs it."""

    def __init__(self, binary, has_store=False, wrapper=()):
        super().__init__("Leveret")
        self.binary = binary
        self.wrapper = wrapper
        self.has_store = has_store

    def start(self):
        ready = pathlib.Path(self.folder, "ready.json")
        store = ["--data-dir", "data"] if self.has_store else ["--no-store"]
        options = [*store, "--amqp-listen", "127.0.0.1:0", "--ready-file", str(ready)]
        self.spawn([*self.wrapper, str(self.binary), "serve", *options], os.environ.copy())
        self.await_true("written its ready file", 60, ready.exists)
        content = json.loads(ready.read_text())
        self.pid = content["pid"]
        self.port = int(content["amqp"][0].rsplit(":", 1)[1])


class RabbitMq(Broker):
    """The RabbitMQ of Debian's package, without plugins and with an empty configuration."""

    def __init__(self):
        super().__init__("RabbitMQ")
        self.epmd_port = 0

    def start(self):
        self.port, distribution, self.epmd_port = free_ports(3)
        folder = pathlib.Path(self.folder)
        for name in ("mnesia", "log"):
            (folder / name).mkdir()
        (folder / "enabled_plugins").write_text("[].\n")
        (folder / "rabbitmq.conf").write_text("")
        loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
        environment = dict(
            os.environ,
            HOME=str(folder),
            RABBITMQ_NODENAME=f"bench{os.getpid()}@localhost",
            RABBITMQ_NODE_IP_ADDRESS="127.0.0.1",
            RABBITMQ_NODE_PORT=str(self.port),
            RABBITMQ_DIST_PORT=str(distribution),
            ERL_EPMD_ADDRESS="127.0.0.1",
            ERL_EPMD_PORT=str(self.epmd_port),
            RABBITMQ_MNESIA_BASE=str(folder / "mnesia"),
            RABBITMQ_LOG_BASE=str(folder / "log"),
            RABBITMQ_ENABLED_PLUGINS_FILE=str(folder / "enabled_plugins"),
            RABBITMQ_CONFIG_FILE=str(folder / "rabbitmq"),
            RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=loopback,
        )
        self.spawn([str(RABBITMQ)], environment)
        self.await_true("greeted a client", 120, lambda: greets(self.port))
        self.pid = self.await_true("shown its process", 5, lambda: self.find("beam.smp"))

    def find(self, command):
        """The process of our session that runs `command`."""
        for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
            try:
                name, rest = path.read_text().split("(", 1)[1].rsplit(")", 1)
            except (OSError, IndexError):
                continue
            if name == command and int(rest.split()[3]) == self.process.pid:
                return int(path.parent.name)
        return None

    def stop(self):
        super().stop()
        epmd = shutil.which("epmd")
        if epmd and self.epmd_port:
            # The node started a name server of its own, which has left its process group.
            command = [epmd, "-port", str(self.epmd_port), "-kill"]
            subprocess.run(command, capture_output=True, timeout=10, check=False)


class External(Broker):
    """A broker that runs already and goes on running: it is not fresh for each run."""

    def __init__(self, name, uri, pid=0):
        super().__init__(name)
        self.external_uri = uri
        self.pid = pid

    @property
    def uri(self):
        return self.external_uri

    def start(self):
        parts = urllib.parse.urlsplit(self.uri)
        place = (parts.hostname, parts.port or (5671 if parts.scheme == "amqps" else 5672))
        try:
            socket.create_connection(place, 5).close()
        except OSError as error:
            raise Failed(f"{self.name} is not at {self.uri}: {error}") from None

    @classmethod
    def parse(cls, text):
        """`NAME=URI` or `NAME=URI,PID`, as the values for the constructor."""
        name, _, rest = text.partition("=")
        uri, comma, pid = rest.rpartition(",")
        uri, pid = (uri, pid) if comma and pid.isdigit() else (rest, "0")
        if not name or urllib.parse.urlsplit(uri).scheme not in ("amqp", "amqps"):
            raise ValueError("takes NAME=URI or NAME=URI,PID, with a URI of amqp or amqps")
        return name, uri, int(pid)


def rabbitmq_version():
    folders = sorted(RABBITMQ.parent.parent.glob("lib/rabbitmq_server-*"))
    return "RabbitMQ " + (folders[-1].name.split("-", 1)[1] if folders else "?")


def leveret_version(binary):
    done = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10)
    return done.stdout.strip().capitalize()


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def greets(port):
    try:
        with socket.create_connection(("127.0.0.1", port), 2) as client:
            client.sendall(b"AMQP\x00\x00\x09\x01")
            return client.recv(1) == b"\x01"
    except OSError:
        return False
