#!/bin/sh
# The conformance checks through rabbitmq-c's command-line tools (Debian's package amqp-tools).
#
# Every tool opens a connection of its own, so what needs one channel for two steps is not
# applicable here. Each tool ends at a deadline, and each check runs in a subshell whose first
# failing expectation ends it.

set -u
uri=${1:-${AMQP_URI:-}}
if [ -z "$uri" ]; then
    echo "usage: client.sh amqp://user:password@host:port/%2F   (or set AMQP_URI)" >&2
    exit 2
fi
work=$(mktemp -d) || exit 2
prefix="conformance.amqp-tools.$$.$(od -An -N6 -tx1 /dev/urandom | tr -d ' \n')"
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
: >"$work/queues"
failed=0

# The two consumers fork a process per message, so they share fewer messages than elsewhere.
messages=1000
bulk=10000

# tool NAME ARGUMENT...: runs one of the tools against the broker, with a deadline.
tool() {
    name=$1
    shift
    timeout -k 1 30 "$name" -u "$uri" "$@"
}

# queue LABEL: declares a queue of this run, which the sweep deletes, and sets $queue.
queue() {
    queue="$prefix.$1"
    echo "$queue" >>"$work/queues"
    tool amqp-declare-queue -q "$queue" >"$work/declared" || fail "declare exit status $?"
    equal "$(cat "$work/declared")" "$queue" "declared queue"
}

fail() {
    echo "$*" >"$work/reason"
    exit 1
}

equal() {
    [ "$1" = "$2" ] || fail "$3: got '$1', wanted '$2'"
}

# refused CODE NAME ARGUMENT...: the tool must fail with this AMQP code on its error output.
refused() {
    code=$1
    shift
    tool "$@" >"$work/out" 2>"$work/err" && fail "$1 succeeded instead of $code"
    grep -q "error $code" "$work/err" || fail "$1: no $code in '$(cat "$work/err")'"
}

# got FILE: the bodies in the file that are this run's and no probes, on one line.
got() {
    sed -n "s/^$prefix //p" "$1" | grep -v probe | xargs
}

# drained QUEUE: the bodies left in the queue, oldest first, on one line.
drained() {
    while tool amqp-get -q "$1" >"$work/body"; do
        sed "s/^$prefix //" "$work/body" && echo
    done | xargs
}

# send EXCHANGE KEY BODY: publishes a body that no other run takes for its own.
send() {
    tool amqp-publish -e "$1" -r "$2" -b "$prefix $3" || fail "publish exit status $?"
}

# bound LABEL EXCHANGE KEY PROBE: starts a consumer of a queue bound by this key, and waits until
# a message to the key PROBE arrives: only then is the binding there. amqp-consume deletes the
# queue when it ends, which is why the checks look at what it prints.
bound() {
    : >"$work/$1"
    # Not through tool: the process in the background must be the one that a kill reaches.
    timeout -k 1 30 amqp-consume -u "$uri" -q "$prefix.$1" -e "$2" -r "$3" -- \
        sh -c 'cat; echo' >"$work/$1" &
    consumers="$consumers $!"
    within 10 probed "$1" "$2" "$4"
}

probed() {
    send "$2" "$3" probe
    grep -q "^$prefix probe" "$work/$1"
}

# routed LABEL WANTED: ends the queue with a last message and compares what came before it.
routed() {
    send "" "$prefix.$1" end
    within 10 grep -q "^$prefix end" "$work/$1"
    equal "$(got "$work/$1")" "$2" "routed to $1"
}

# within SECONDS COMMAND...: repeats the command until it succeeds.
within() {
    deadline=$(($(date +%s) + $1))
    shift
    until "$@"; do
        [ "$(date +%s)" -lt "$deadline" ] || fail "timed out waiting for: $*"
        sleep 0.05
    done
}

wrong_password() {
    address=${uri#*://}
    wrong="${uri%%://*}://guest:wrong@${address#*@}"
    timeout 30 amqp-publish -u "$wrong" -r x -b x 2>"$work/err" && fail "let in"
    grep -q "error 403.*ACCESS_REFUSED" "$work/err" || fail "$(cat "$work/err")"
}

declare_and_delete() {
    queue declare
    queue declare
    refused 406 amqp-declare-queue -d -q "$queue"
    named=$(tool amqp-declare-queue -q "") || fail "declare exit status $?"
    echo "$named" >>"$work/queues"
    case $named in
    amq.gen-*) ;;
    *) fail "the server-named queue is $named" ;;
    esac
    send "" "$queue" 1
    equal "$(tool amqp-delete-queue -q "$queue")" 1 "messages deleted with the queue"
    refused 404 amqp-get -q "$queue"
}

bind_default() {
    queue default.a && first=$queue
    queue default.b && second=$queue
    send "" "$first" 0
    send "" "$second" 1
    send "" "$prefix.nowhere" 2
    equal "$(drained "$first")" 0 "routed to a"
    equal "$(drained "$second")" 1 "routed to b"
}

bind_direct() {
    bound direct.a amq.direct "$prefix.red" "$prefix.red"
    bound direct.b amq.direct "$prefix.green" "$prefix.green"
    send amq.direct "$prefix.red" 0
    send amq.direct "$prefix.green" 1
    send amq.direct "$prefix.black" 2
    send amq.direct "$prefix.red" 3
    routed direct.a "0 3 end"
    routed direct.b "1 end"
}

bind_fanout() {
    bound fanout.a amq.fanout one other
    bound fanout.b amq.fanout two other
    send amq.fanout one 0
    send amq.fanout other 1
    routed fanout.a "0 1 end"
    routed fanout.b "0 1 end"
}

bind_topic() {
    # The run's name is one word of each key, so that parallel runs stay apart.
    word=$(echo "$prefix" | tr . -)
    bound topic.a amq.topic "$word.*.nyse" "$word.probe.nyse"
    bound topic.b amq.topic "$word.#" "$word"
    bound topic.c amq.topic "*.$word" "probe.$word"
    send amq.topic "$word.usd.nyse" 0
    send amq.topic "$word" 1
    send amq.topic "usd.$word" 2
    send amq.topic "$word.a.b.nyse" 3
    send amq.topic "other-$word" 4
    routed topic.a "0 end"
    routed topic.b "0 1 3 end"
    routed topic.c "2 end"
}

consume_two() {
    queue consume
    seq "$messages" | tool amqp-publish -r "$queue" -l || fail "publish exit status $?"
    half=$((messages / 2))
    tool amqp-consume -q "$queue" -p 100 -c "$half" cat >"$work/one" &
    one=$!
    tool amqp-consume -q "$queue" -p 100 -c "$half" cat >"$work/two" ||
        fail "second consumer: $?"
    wait "$one" || fail "first consumer: $?"
    equal "$(wc -l <"$work/one")" "$half" "messages of the first consumer"
    sort -n "$work/one" "$work/two" >"$work/both"
    seq "$messages" | cmp -s - "$work/both" || fail "a message was lost or came twice"
    # A command that fails leaves its message unacked, so it must come back.
    send "" "$queue" again
    tool amqp-consume -q "$queue" -c 1 -- sh -c 'cat >/dev/null; exit 1' ||
        fail "consumer exit status $?"
    within 10 tool amqp-get -q "$queue" >"$work/out"
    equal "$(cat "$work/out")" "$prefix again" "the unacked message"
}

get_one() {
    queue get
    tool amqp-get -q "$queue" >"$work/out"
    equal "$? $(cat "$work/out")" "2 " "get from an empty queue"
    seq "$bulk" | tool amqp-publish -r "$queue" -l -p -C text/plain -E identity -H "key: value" ||
        fail "publish exit status $?"
    equal "$(tool amqp-get -q "$queue")" 1 "the first message"
    equal "$(tool amqp-get -q "$queue")" 2 "the second message"
    equal "$(tool amqp-delete-queue -q "$queue")" $((bulk - 2)) "messages left"
}

passive_missing() {
    refused 404 amqp-get -q "$prefix.missing"
    grep -q "no queue '$prefix.missing' in vhost" "$work/err" || fail "$(cat "$work/err")"
    refused 404 amqp-consume -q "$prefix.missing" -c 1 cat
    refused 404 amqp-publish -e "$prefix.missing" -r x -b x
}

# locked: whether the queue is there and another connection's.
locked() {
    tool amqp-get -q "$queue" >"$work/out" 2>"$work/err"
    grep -q "error 405.*RESOURCE_LOCKED" "$work/err"
}

# gone: whether the queue is no more.
gone() {
    tool amqp-get -q "$queue" >"$work/out" 2>"$work/err"
    grep -q "error 404" "$work/err"
}

exclusive_locked() {
    queue="$prefix.exclusive"
    tool amqp-consume -x -q "$queue" -c 1 cat >"$work/owner" &
    owner=$!
    within 10 locked
    refused 405 amqp-declare-queue -q "$queue"
    refused 405 amqp-consume -q "$queue" -c 1 cat
    tool amqp-publish -r "$queue" -b end || fail "publish exit status $?"
    wait "$owner" || fail "owner: $?"
    equal "$(cat "$work/owner")" end "the owner's message"
    within 10 gone
}

clean_close() {
    queue close
    send "" "$queue" 0
    tool amqp-get -q "$queue" >"$work/out" 2>"$work/err"
    equal "$? $(cat "$work/err")" "0 " "exit status and errors of a clean close"
}

# check NAME FUNCTION: runs the function in a subshell and reports.
check() {
    : >"$work/reason"
    if (
        consumers=
        trap 'test -z "$consumers" || kill $consumers' EXIT
        "$2"
    ); then
        echo "ok $1"
    else
        failed=1
        echo "FAIL $1: $(tr '\n' ' ' <"$work/reason")"
    fi
}

check wrong-password wrong_password
check declare declare_and_delete
check bind-default bind_default
check bind-direct bind_direct
check bind-fanout bind_fanout
check bind-topic bind_topic
echo "n/a bind-headers: amqp-consume binds without arguments"
echo "n/a bind-exchange: no tool binds exchanges"
echo "n/a confirms: amqp-publish does not ask for confirms"
check consume-two consume_two
echo "n/a nack-requeue: no tool nacks"
check get get_one
echo "n/a mandatory-return: amqp-publish does not publish mandatory"
check passive-missing passive_missing
check exclusive-locked exclusive_locked
echo "n/a rpc-reply-to: no tool publishes and consumes on one channel"
echo "n/a tx: no tool has transactions"
check close clean_close
for name in ttl queue-expires dead-letter retry-loop max-length priority-queue single-active \
    consumer-priority delivery-limit quorum-declare; do
    echo "n/a $name: no tool passes arguments to queues or consumers"
done

while read -r name; do
    tool amqp-delete-queue -q "$name" >"$work/out" || echo "sweep: $name" >&2
done <"$work/queues"
exit "$failed"
