package main

// The checks themselves, each a function that panics with a reason when the broker does not do
// what RabbitMQ does.

import (
	"fmt"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

func checks() []check {
	list := []check{
		{"wrong-password", wrongPassword},
		{"declare", declare},
		{"bind-default", bindDefault},
	}
	for _, kind := range []string{"direct", "fanout", "topic", "headers"} {
		kind := kind
		list = append(list, check{"bind-" + kind, func() { bindType(kind) }})
	}
	list = append(list,
		check{"bind-exchange", bindExchange},
		check{"confirms", confirms},
		check{"consume-two", consumeTwo},
		check{"nack-requeue", nackRequeue},
		check{"get", get},
		check{"mandatory-return", mandatoryReturn},
		check{"passive-missing", passiveMissing},
		check{"exclusive-locked", exclusiveLocked},
		check{"rpc-reply-to", rpcReplyTo},
		check{"tx", tx},
		check{"close", closing},
	)
	return append(list, queueChecks()...)
}

func wrongPassword() {
	conn, err := amqp.Dial(wrongPasswordURI())
	if err == nil {
		_ = conn.Close()
		panic("a wrong password was let in")
	}
	expectCode(err, amqp.AccessRefused, "dial with a wrong password")
}

func declare() {
	conn := connect()
	defer closeAll(conn)
	ch := confirming(conn)
	queue, exchange := queueName("declare"), exchangeName("declare")
	for round := 0; round < 2; round++ {
		args := amqp.Table{"x-max-length": 1000}
		ok, err := ch.QueueDeclare(queue, true, false, false, false, args)
		must(err)
		expectEqual(ok, amqp.Queue{Name: queue}, "declare-ok")
		must(ch.ExchangeDeclare(exchange, "direct", true, false, false, false, nil))
	}
	named, err := ch.QueueDeclare("", false, false, true, false, nil)
	must(err)
	expect(strings.HasPrefix(named.Name, "amq.gen-"), "server-named queue is %q", named.Name)
	publish(ch, "", queue, "1", nil)
	purged, err := ch.QueuePurge(queue, false)
	must(err)
	expectEqual(purged, 1, "purged")
	_, err = channel(conn).QueueDeclare(queue, false, false, false, false, nil)
	expectCode(err, amqp.PreconditionFailed, "inequivalent declare")
	must(ch.ExchangeDelete(exchange, false, false))
	left, err := ch.QueueDelete(queue, false, false, false)
	must(err)
	expectEqual(left, 0, "deleted with")
	err = ch.ExchangeDeclarePassive(exchange, "direct", true, false, false, false, nil)
	expectCode(err, amqp.NotFound, "deleted exchange")
}

func bindDefault() {
	conn := connect()
	defer closeAll(conn)
	ch := confirming(conn)
	names := []string{queueName("default.a"), queueName("default.b")}
	for _, name := range names {
		declareQueue(ch, name)
	}
	for index, key := range append(names, prefix+".nowhere") {
		publish(ch, "", key, strconv.Itoa(index), nil)
	}
	for index, name := range names {
		expectEqual(drain(ch, name), []int{index}, "routed")
	}
}

type binding struct {
	queue, key string
	args       amqp.Table
}

type sent struct {
	key     string
	headers amqp.Table
}

// A routing says which messages, by index, each queue must hold: in this order, nothing else.
type routing struct {
	bindings []binding
	messages []sent
	wanted   map[string][]int
}

func routings() map[string]routing {
	pdf := func(match string) amqp.Table {
		return amqp.Table{"x-match": match, "kind": "pdf", "pages": int32(3)}
	}
	return map[string]routing{
		"direct": {
			[]binding{{"a", "red", nil}, {"a", "blue", nil}, {"b", "green", nil}},
			[]sent{{"red", nil}, {"green", nil}, {"blue", nil}, {"black", nil}},
			map[string][]int{"a": {0, 2}, "b": {1}},
		},
		"fanout": {
			[]binding{{"a", "", nil}, {"b", "ignored", nil}},
			[]sent{{"", nil}, {"other", nil}},
			map[string][]int{"a": {0, 1}, "b": {0, 1}},
		},
		"topic": {
			[]binding{
				{"a", "stock.*.nyse", nil},
				{"b", "stock.#", nil},
				{"c", "#", nil},
				{"d", "*.usd", nil},
				// A second path to the same queue must not make a second copy.
				{"b", "stock.usd", nil},
			},
			[]sent{
				{"stock.usd.nyse", nil},
				{"stock", nil},
				{"stock.usd", nil},
				{"weather", nil},
				{"stock.a.b.nyse", nil},
			},
			map[string][]int{"a": {0}, "b": {0, 1, 2, 4}, "c": {0, 1, 2, 3, 4}, "d": {2}},
		},
		"headers": {
			[]binding{{"a", "", pdf("all")}, {"b", "", pdf("any")}},
			[]sent{
				{"", amqp.Table{"kind": "pdf", "pages": int32(3)}},
				{"", amqp.Table{"kind": "pdf", "pages": int32(4)}},
				{"", amqp.Table{"kind": "doc"}},
				{"", nil},
			},
			map[string][]int{"a": {0}, "b": {0, 1}},
		},
	}
}

func bindType(kind string) {
	table := routings()[kind]
	conn := connect()
	defer closeAll(conn)
	ch := confirming(conn)
	exchange := exchangeName(kind)
	must(ch.ExchangeDeclare(exchange, kind, false, false, false, false, nil))
	names := map[string]string{}
	for label := range table.wanted {
		names[label] = queueName(kind + "." + label)
		declareQueue(ch, names[label])
	}
	for _, bound := range table.bindings {
		must(ch.QueueBind(names[bound.queue], bound.key, exchange, false, bound.args))
	}
	for index, message := range table.messages {
		publish(ch, exchange, message.key, strconv.Itoa(index), message.headers)
	}
	for label, bodies := range table.wanted {
		expectEqual(drain(ch, names[label]), bodies, "routed to "+label)
	}
	first := table.bindings[0]
	must(ch.QueueUnbind(names[first.queue], first.key, exchange, first.args))
	publish(ch, exchange, table.messages[0].key, "0", table.messages[0].headers)
	expectEqual(drain(ch, names[first.queue]), []int{}, "routed after unbind")
}

func bindExchange() {
	conn := connect()
	defer closeAll(conn)
	ch := confirming(conn)
	source, target := exchangeName("source"), exchangeName("target")
	queue := queueName("chained")
	must(ch.ExchangeDeclare(source, "topic", false, false, false, false, nil))
	must(ch.ExchangeDeclare(target, "fanout", false, false, false, false, nil))
	declareQueue(ch, queue)
	must(ch.QueueBind(queue, "", target, false, nil))
	must(ch.ExchangeBind(target, "k.#", source, false, nil))
	publish(ch, source, "k.1", "0", nil)
	publish(ch, source, "x", "1", nil)
	expectEqual(drain(ch, queue), []int{0}, "routed")
}

func confirms() {
	conn := connect()
	defer closeAll(conn)
	ch := confirming(conn)
	queue := queueName("confirms")
	declareQueue(ch, queue)
	fill(ch, queue)
	expectEqual(count(ch, queue), messages, "messages in the queue")
}

// A tally is what the two consumers of consumeTwo saw, together.
type tally struct {
	sync.Mutex
	bodies [2][]int
	total  int
}

func (t *tally) add(consumer, body int) (total int) {
	t.Lock()
	defer t.Unlock()
	t.bodies[consumer] = append(t.bodies[consumer], body)
	t.total++
	return t.total
}

func (t *tally) isFull() bool {
	t.Lock()
	defer t.Unlock()
	return len(t.bodies[0]) == prefetch && len(t.bodies[1]) == prefetch
}

// consume takes one consumer's deliveries and acks each alone or fifty at a time, once the gate
// is open; until then it only counts.
func (t *tally) consume(which int, deliveries <-chan amqp.Delivery, gate, done chan struct{}) {
	var held []amqp.Delivery
	settle := func(step int) {
		for which == 0 && len(held) > 0 {
			_ = held[0].Ack(false)
			held = held[1:]
		}
		if len(held) >= step && len(held) > 0 {
			_ = held[len(held)-1].Ack(true)
			held = nil
		}
	}
	open := false
	for {
		select {
		case delivery, ok := <-deliveries:
			if !ok {
				return
			}
			held = append(held, delivery)
			if t.add(which, number(delivery.Body)) == messages {
				close(done)
			}
		case <-gate:
			gate, open = nil, true
		case <-done:
			settle(1)
			return
		}
		if open {
			settle(50)
		}
	}
}

func consumeTwo() {
	publisherConn := connect()
	defer closeAll(publisherConn)
	publisher := confirming(publisherConn)
	queue := queueName("consume")
	declareQueue(publisher, queue)
	seen, gate, done := &tally{}, make(chan struct{}), make(chan struct{})
	var channels [2]*amqp.Channel
	var consumers sync.WaitGroup
	for which := range channels {
		conn := connect()
		defer closeAll(conn)
		channels[which] = channel(conn)
		must(channels[which].Qos(prefetch, 0, false))
		deliveries, err := channels[which].Consume(queue, "c", false, false, false, false, nil)
		must(err)
		consumers.Add(1)
		go func(which int) {
			defer consumers.Done()
			seen.consume(which, deliveries, gate, done)
		}(which)
	}
	fill(publisher, queue)
	// Nothing is acked yet: each consumer holds its prefetch and not one message more.
	until(seen.isFull, "two full prefetch windows")
	expectEqual(count(publisher, queue), messages-2*prefetch, "ready messages")
	expect(seen.isFull(), "more deliveries than the prefetch allows")
	close(gate)
	select {
	case <-done:
	case <-time.After(bulkTime):
		panic("timed out waiting for all messages")
	}
	consumers.Wait()
	for _, ch := range channels {
		must(ch.Cancel("c", false))
		must(ch.Close())
	}
	expectComplete(seen)
	expectEqual(count(publisher, queue), 0, "messages left after all acks")
}

func expectComplete(seen *tally) {
	seen.Lock()
	defer seen.Unlock()
	for which, bodies := range seen.bodies {
		expect(len(bodies) > 0, "consumer %d got nothing", which)
		expect(sort.IntsAreSorted(bodies), "consumer %d saw messages out of order", which)
	}
	all := append(append([]int{}, seen.bodies[0]...), seen.bodies[1]...)
	sort.Ints(all)
	expectEqual(len(all), messages, "deliveries")
	for index, body := range all {
		expect(index == body, "message %d was lost or came twice", index)
	}
}

func nackRequeue() {
	conn := connect()
	defer closeAll(conn)
	ch := confirming(conn)
	queue := queueName("nack")
	declareQueue(ch, queue)
	must(ch.Qos(3, 0, false))
	for index := 0; index < 3; index++ {
		publish(ch, "", queue, strconv.Itoa(index), nil)
	}
	deliveries, err := ch.Consume(queue, "c", false, false, false, false, nil)
	must(err)
	var got [3]amqp.Delivery
	for index := range got {
		got[index] = receive(deliveries, "a delivery")
		expectEqual(number(got[index].Body), index, "body")
		expect(!got[index].Redelivered, "redelivered at first delivery")
	}
	must(got[1].Nack(false, true))
	back := receive(deliveries, "the requeued message")
	expectEqual(number(back.Body), 1, "came back")
	expect(back.Redelivered, "the requeued message is not marked redelivered")
	must(got[0].Reject(false))
	must(back.Nack(true, false))
	must(ch.Cancel("c", false))
	must(ch.Close())
	expectEqual(count(channel(conn), queue), 0, "messages left")
}

func get() {
	conn := connect()
	defer closeAll(conn)
	ch := confirming(conn)
	queue := queueName("get")
	declareQueue(ch, queue)
	_, found, err := ch.Get(queue, false)
	must(err)
	expect(!found, "an empty queue gave a message")
	message := amqp.Publishing{
		ContentType:     "text/plain",
		ContentEncoding: "identity",
		Headers: amqp.Table{
			"text": "\u00fc", "number": int64(1) << 40, "flag": true,
			"list": []any{int32(1), "two"},
		},
		DeliveryMode:  amqp.Persistent,
		Priority:      3,
		CorrelationId: "correlation",
		ReplyTo:       "reply",
		MessageId:     "id",
		Expiration:    "3600000",
		Timestamp:     time.Unix(1_700_000_000, 0),
		Type:          "type",
		AppId:         "app",
		Body:          []byte("first"),
	}
	must(ch.Publish("", queue, false, false, message))
	publish(ch, "", queue, "", nil)
	got, found, err := ch.Get(queue, false)
	must(err)
	expect(found, "no message")
	place := fmt.Sprint(got.Exchange, "|", got.RoutingKey, "|", got.MessageCount, got.Redelivered)
	expectEqual(place, fmt.Sprint("|", queue, "|", 1, false), "get-ok")
	expectEqual(got.Timestamp.Unix(), message.Timestamp.Unix(), "timestamp")
	copied := amqp.Publishing{
		ContentType: got.ContentType, ContentEncoding: got.ContentEncoding, Headers: got.Headers,
		DeliveryMode: got.DeliveryMode, Priority: got.Priority, CorrelationId: got.CorrelationId,
		ReplyTo: got.ReplyTo, MessageId: got.MessageId, Expiration: got.Expiration,
		Timestamp: message.Timestamp, Type: got.Type, AppId: got.AppId, Body: got.Body,
	}
	expectEqual(copied, message, "properties")
	must(got.Ack(false))
	second, found, err := ch.Get(queue, true)
	must(err)
	expect(found && len(second.Body) == 0, "second body is %q", second.Body)
	_, found, err = ch.Get(queue, false)
	must(err)
	expect(!found, "the queue is not empty")
}

func mandatoryReturn() {
	conn := connect()
	defer closeAll(conn)
	ch := confirming(conn)
	// Unbuffered would hang the client; one place each is all that may come.
	returns := ch.NotifyReturn(make(chan amqp.Return, 1))
	key := prefix + ".nowhere"
	message := amqp.Publishing{Body: []byte("back")}
	confirm, err := ch.PublishWithDeferredConfirm("amq.direct", key, true, false, message)
	must(err)
	awaitConfirm(confirm)
	select {
	case back := <-returns:
		got := fmt.Sprint(back.ReplyCode, back.ReplyText, back.Exchange, back.RoutingKey)
		expectEqual(got, fmt.Sprint(uint16(312), "NO_ROUTE", "amq.direct", key), "return")
		expectEqual(string(back.Body), "back", "returned body")
	default:
		panic("the confirm came, and no return before it")
	}
}

func expectUsable(conn *amqp.Connection) {
	ch := confirming(conn)
	queue, err := ch.QueueDeclare("", false, false, true, false, nil)
	must(err)
	publish(ch, "", queue.Name, "7", nil)
	expectEqual(drain(ch, queue.Name), []int{7}, "a new channel on the same connection")
}

func passiveMissing() {
	conn := connect()
	defer closeAll(conn)
	missing := prefix + ".missing"
	_, err := channel(conn).QueueDeclarePassive(missing, false, false, false, false, nil)
	failure := expectCode(err, amqp.NotFound, "passive declare")
	expect(strings.Contains(failure.Reason, missing), "no queue name in %q", failure.Reason)
	expect(!conn.IsClosed(), "the connection is closed")
	expectUsable(conn)
}

func exclusiveLocked() {
	owner, second := connect(), connect()
	defer closeAll(second)
	queue := queueName("exclusive")
	_, err := channel(owner).QueueDeclare(queue, false, false, true, false, nil)
	must(err)
	_, err = channel(second).QueueDeclarePassive(queue, false, false, true, false, nil)
	expectCode(err, amqp.ResourceLocked, "passive declare from a second connection")
	_, err = channel(second).QueueDeclare(queue, false, false, true, false, nil)
	expectCode(err, amqp.ResourceLocked, "declare from a second connection")
	_, err = channel(second).Consume(queue, "", false, false, false, false, nil)
	expectCode(err, amqp.ResourceLocked, "consume from a second connection")
	expectUsable(second)
	must(owner.Close())
	until(func() bool {
		_, err := channel(second).QueueDeclarePassive(queue, false, false, false, false, nil)
		failure, ok := err.(*amqp.Error)
		return ok && failure.Code == amqp.NotFound
	}, "the exclusive queue to go with its connection")
}

func rpcReplyTo() {
	server, client := connect(), connect()
	defer closeAll(server, client)
	queue := queueName("rpc")
	answering := channel(server)
	declareQueue(answering, queue)
	calls, err := answering.Consume(queue, "", false, false, false, false, nil)
	must(err)
	calling := channel(client)
	replies, err := calling.Consume("amq.rabbitmq.reply-to", "", true, false, false, false, nil)
	must(err)
	for index := 0; index < 10; index++ {
		id := strconv.Itoa(index)
		must(calling.Publish("", queue, false, false, amqp.Publishing{
			ReplyTo: "amq.rabbitmq.reply-to", CorrelationId: id, Body: []byte(id),
		}))
		call := receive(calls, "a call")
		expect(strings.HasPrefix(call.ReplyTo, "amq.rabbitmq.reply-to."),
			"reply_to was not rewritten: %q", call.ReplyTo)
		must(answering.Publish("", call.ReplyTo, false, false, amqp.Publishing{
			CorrelationId: call.CorrelationId, Body: append(call.Body, '!'),
		}))
		must(call.Ack(false))
		reply := receive(replies, "a reply")
		expectEqual(reply.CorrelationId+" "+string(reply.Body), id+" "+id+"!", "reply")
	}
}

func tx() {
	conn := connect()
	defer closeAll(conn)
	ch, watcher := channel(conn), channel(conn)
	queue := queueName("tx")
	declareQueue(ch, queue)
	must(ch.Tx())
	for index := 0; index < 3; index++ {
		publish(ch, "", queue, strconv.Itoa(index), nil)
	}
	expectEqual(count(watcher, queue), 0, "messages before the commit")
	must(ch.TxCommit())
	expectEqual(count(watcher, queue), 3, "messages after the commit")
	publish(ch, "", queue, "3", nil)
	must(ch.TxRollback())
	must(ch.TxCommit())
	expectEqual(count(watcher, queue), 3, "messages after the rollback")
	for _, end := range []func() error{ch.TxCommit, ch.TxRollback} {
		delivery, found, err := ch.Get(queue, false)
		must(err)
		expect(found, "no message")
		must(delivery.Ack(false))
		must(end())
	}
	must(ch.Close())
	until(func() bool { return count(watcher, queue) == 2 }, "the rolled back ack's message")
	delivery, _, err := watcher.Get(queue, true)
	must(err)
	got := fmt.Sprint(string(delivery.Body), delivery.Redelivered)
	expectEqual(got, fmt.Sprint("1", true), "after the rolled back ack")
}

func closing() {
	conn := connect()
	failures := conn.NotifyClose(make(chan *amqp.Error, 1))
	first, second := channel(conn), channel(conn)
	must(first.Close())
	expect(first.IsClosed() && !second.IsClosed(), "closing a channel touched another")
	expectUsable(conn)
	must(conn.Close())
	expect(conn.IsClosed(), "the connection is not closed")
	if failure, open := <-failures; open {
		panic(fmt.Sprintf("closed with %v", failure))
	}
	again := connect()
	defer closeAll(again)
	expectUsable(again)
}
