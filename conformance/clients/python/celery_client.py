"""The checks through Celery: a program that sends tasks, and worker processes that run them.

Celery's settings are its defaults but for names, so that runs may share a broker: the queue of
tasks and the exchanges of remote control carry the run's prefix. The queues by which Celery has
the broker delay a task have names that cannot be changed; the sweep deletes those as well.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback

import celery
from amqp.exceptions import NotFound

import common
from common import expect, expect_equal

TASKS = 100
COUNTDOWN_SECONDS = 1.0
RETRIES = 3
# A worker takes some seconds to start on a busy machine.
RESULT_SECONDS = 25.0
PREFIX_VARIABLE = "CONFORMANCE_CELERY_PREFIX"
DELAYED = "celery_delayed"
DELAYED_LEVELS = 28


def application(uri, prefix, label):
    """The application that the program and its worker share."""
    app = celery.Celery("conformance", broker=uri, backend="rpc://", set_as_current=False)
    app.conf.task_default_queue = f"{prefix}.{label}"
    app.conf.control_exchange = f"{prefix}.{label}"
    app.conf.event_exchange = f"{prefix}.{label}.ev"
    app.conf.worker_hijack_root_logger = False
    if label == "quorum":
        app.conf.task_default_queue_type = "quorum"
        # Celery has the broker delay only tasks that go through a topic exchange.
        app.conf.task_default_exchange_type = "topic"

    @app.task(shared=False, name="add")
    def add(left, right):
        return left + right

    @app.task(shared=False, name="clock", bind=True)
    def clock(self):
        """The time, and why the task's message died on its way here."""
        return time.time(), [death["reason"] for death in self.request.get("x-death") or []]

    @app.task(shared=False, name="retried", bind=True, max_retries=RETRIES)
    def retried(self):
        if self.request.retries < RETRIES:
            raise self.retry(countdown=0)
        return self.request.retries

    @app.task(shared=False, name="late", acks_late=True, bind=True)
    def late(self, marker):
        """The first run says that it began and never ends; the second one sees that it did."""
        if os.path.exists(marker):
            return self.request.delivery_info["redelivered"]
        with open(marker, "x"):
            time.sleep(2 * RESULT_SECONDS)
        return None

    return app


class Worker:
    """A worker process, which leads a process group."""

    def __init__(self, run, label):
        self.app = application(run.uri, run.prefix, label)
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", PREFIX_VARIABLE: run.prefix}
        command = [sys.executable, __file__, run.uri, label]
        self.process = subprocess.Popen(
            command, env=environment, stdout=sys.stderr, start_new_session=True
        )

    def send(self, name, *arguments, **options):
        return self.app.tasks[name].apply_async(arguments, **options)

    def kill(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()

    def stop(self):
        self.process.terminate()
        try:
            status = self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError("the worker does not stop") from None
        expect_equal(status, 0, "the worker's exit status")


def task(worker):
    results = [worker.send("add", number, number) for number in range(TASKS)]
    got = [result.get(timeout=RESULT_SECONDS) for result in results]
    expect_equal(got, [2 * number for number in range(TASKS)], "results")


def countdown(worker, deaths=()):
    began = time.time()
    result = worker.send("clock", countdown=COUNTDOWN_SECONDS)
    ran, reasons = result.get(timeout=RESULT_SECONDS)
    expect(ran - began >= COUNTDOWN_SECONDS, f"the task ran after {ran - began} s")
    expect_equal(reasons, list(deaths), "deaths of the message")


def retry(worker):
    got = worker.send("retried").get(timeout=RESULT_SECONDS)
    expect_equal(got, RETRIES, "retries")


def ping(worker):
    answers = worker.app.control.inspect(timeout=1.0).ping()
    expect_equal(list((answers or {}).values()), [{"ok": "pong"}], "answers")


def late_ack(run, worker):
    """Kills the worker in the middle of a task; returns the next one, which must get it again."""
    with tempfile.TemporaryDirectory() as folder:
        marker = os.path.join(folder, "began")
        result = worker.send("late", marker)
        deadline = time.monotonic() + RESULT_SECONDS
        while not os.path.exists(marker):
            expect(time.monotonic() < deadline, "the task does not begin")
            time.sleep(0.02)
        worker.kill()
        following = Worker(run, "default")
        try:
            expect_equal(result.get(timeout=RESULT_SECONDS), True, "redelivered")
        finally:
            following.stop()


def quorum(worker):
    expect_equal(worker.send("add", 1, 2).get(timeout=RESULT_SECONDS), 3, "the result")
    # The worker has declared the queues by now in which the broker keeps a delayed task.
    countdown(worker, deaths=["expired"])


def delayed_exists(app):
    with app.connection_for_write() as connection:
        try:
            connection.default_channel.queue_declare(f"{DELAYED}_0", passive=True)
        except NotFound:
            return False
    return True


def sweep(app, prefix, keep_delayed):
    """Deletes what the checks left. What expires by itself is left to do so."""
    queues = [f"{prefix}.default", f"{prefix}.quorum"]
    exchanges = [f"{name}{suffix}" for name in queues for suffix in ("", ".ev", ".pidbox")]
    exchanges += [f"reply.{name}.pidbox" for name in queues]
    if not keep_delayed:
        levels = [f"{DELAYED}_{level}" for level in range(DELAYED_LEVELS)]
        queues += levels
        exchanges += [*levels, f"{DELAYED}_delivery"]
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        for name in queues:
            channel.queue_delete(name)
        for name in exchanges:
            channel.exchange_delete(name)


def main():
    run = common.Run("celery")
    had_delayed = delayed_exists(application(run.uri, run.prefix, "default"))

    def check(name, action, *arguments):
        try:
            action(*arguments)
            run.passed(name)
        except Exception as error:
            traceback.print_exc()
            run.fail(name, f"{type(error).__name__}: {error}")

    # Both start at once, because that is what takes the most time.
    default, through_quorum = Worker(run, "default"), Worker(run, "quorum")
    try:
        check("task", task, default)
        check("task-countdown", countdown, default)
        check("task-retry", retry, default)
        check("worker-ping", ping, default)
        check("task-late-ack", late_ack, run, default)
        check("task-quorum", quorum, through_quorum)
        through_quorum.stop()
        sweep(default.app, run.prefix, had_delayed)
    except Exception as error:
        print(f"sweep: {error!r}", file=sys.stderr)
    finally:
        default.kill()
        through_quorum.kill()
    return 1 if run.failed else 0


def serve(uri, label):
    """What the worker process does: Celery's own program."""
    prefix = os.environ[PREFIX_VARIABLE]
    options = ["--concurrency=2", "--loglevel=INFO", f"--hostname={prefix}.{label}@localhost"]
    application(uri, prefix, label).worker_main(["worker", *options])


if __name__ == "__main__":
    if PREFIX_VARIABLE in os.environ:
        serve(*sys.argv[1:])
    else:
        sys.exit(main())
