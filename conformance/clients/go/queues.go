package main

// The checks of what queues do with messages by themselves. Times are short, but no check relies
// on a broker being quick: what must go is waited for.

import (
	"fmt"
	"strconv"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	ttlMillis     = 300
	expiresMillis = 300
	rounds        = 3
	deliveryLimit = 2
)

func queueChecks() []check {
	return []check{
		{"ttl", ttl},
		{"queue-expires", queueExpires},
		{"dead-letter", deadLetter},
		{"retry-loop", retryLoop},
		{"max-length", maxLength},
		{"priority-queue", priorityQueue},
		{"single-active", singleActive},
		{"consumer-priority", consumerPriority},
		{"delivery-limit", limitDeliveries},
		{"quorum-declare", quorumDeclare},
	}
}

func declareWith(ch *amqp.Channel, label string, durable bool, args amqp.Table) string {
	queue := queueName(label)
	_, err := ch.QueueDeclare(queue, durable, false, false, false, args)
	must(err)
	return queue
}

// send publishes to the queue and returns whether the broker acked it.
func send(ch *amqp.Channel, queue string, body int, message amqp.Publishing) bool {
	message.Body = []byte(strconv.Itoa(body))
	confirm, err := ch.PublishWithDeferredConfirm("", queue, false, false, message)
	must(err)
	select {
	case <-confirm.Done():
		return confirm.Acked()
	case <-time.After(waitTime):
		panic("timed out waiting for a confirm")
	}
}

func sendAll(ch *amqp.Channel, queue string, number int) []bool {
	acked := []bool{}
	for body := 0; body < number; body++ {
		acked = append(acked, send(ch, queue, body, amqp.Publishing{}))
	}
	return acked
}

// await waits for a message in the queue.
func await(ch *amqp.Channel, queue string) amqp.Delivery {
	var delivery amqp.Delivery
	until(func() bool {
		got, found, err := ch.Get(queue, true)
		must(err)
		delivery = got
		return found
	}, "a message in "+queue)
	return delivery
}

func consume(ch *amqp.Channel, queue string, args amqp.Table) <-chan amqp.Delivery {
	deliveries, err := ch.Consume(queue, "c", false, false, false, false, args)
	must(err)
	return deliveries
}

func receiveBodies(deliveries <-chan amqp.Delivery, wanted []int, what string) amqp.Delivery {
	var last amqp.Delivery
	for _, body := range wanted {
		last = receive(deliveries, what)
		expectEqual(number(last.Body), body, what)
	}
	return last
}

func deathsOf(delivery amqp.Delivery) []amqp.Table {
	entries, ok := delivery.Headers["x-death"].([]any)
	expect(ok, "x-death is %#v", delivery.Headers["x-death"])
	deaths := []amqp.Table{}
	for _, entry := range entries {
		deaths = append(deaths, entry.(amqp.Table))
	}
	return deaths
}

// expectDeath compares an entry of x-death, of a message published to the queue by its name.
func expectDeath(death amqp.Table, queue, reason string, times int64) {
	got := []any{death["queue"], death["reason"], death["count"], death["exchange"],
		death["routing-keys"]}
	expectEqual(got, []any{queue, reason, times, "", []any{queue}}, "x-death")
}

func ttl() {
	conn := connect()
	defer closeAll(conn)
	ch := confirming(conn)
	byQueue := declareWith(ch, "ttl.queue", false, amqp.Table{"x-message-ttl": ttlMillis})
	byMessage := declareWith(ch, "ttl.message", false, amqp.Table{"x-message-ttl": 3_600_000})
	began := time.Now()
	send(ch, byQueue, 0, amqp.Publishing{})
	send(ch, byQueue, 1, amqp.Publishing{Expiration: "3600000"})
	send(ch, byMessage, 2, amqp.Publishing{Expiration: strconv.Itoa(ttlMillis)})
	send(ch, byMessage, 3, amqp.Publishing{})
	left := func() [2]int { return [2]int{count(ch, byQueue), count(ch, byMessage)} }
	expectEqual(left(), [2]int{2, 2}, "messages at first")
	until(func() bool { return left() == [2]int{0, 1} }, "the messages to expire")
	expect(time.Since(began) >= ttlMillis*time.Millisecond, "the messages expired early")
	expectEqual(drain(ch, byQueue), []int{}, "delivered of the expired")
	expectEqual(drain(ch, byMessage), []int{3}, "delivered of the rest")
}

func queueExpires() {
	conn := connect()
	defer closeAll(conn)
	ch := channel(conn)
	queue := declareWith(ch, "expires", false, amqp.Table{"x-expires": expiresMillis})
	consume(ch, queue, nil)
	time.Sleep(2 * expiresMillis * time.Millisecond)
	expectEqual(count(ch, queue), 0, "messages in the queue in use")
	must(ch.Cancel("c", false))
	until(func() bool {
		// Asking for the queue is a use of it, so it is asked for at longer intervals.
		time.Sleep(1.5 * expiresMillis * time.Millisecond)
		_, err := channel(conn).QueueDeclarePassive(queue, false, false, false, false, nil)
		failure, ok := err.(*amqp.Error)
		return ok && failure.Code == amqp.NotFound
	}, "the queue to expire")
}

func deadLetter() {
	conn := connect()
	defer closeAll(conn)
	ch := confirming(conn)
	exchange, dead := exchangeName("dlx"), declareWith(ch, "dead", false, nil)
	must(ch.ExchangeDeclare(exchange, "direct", false, false, false, false, nil))
	must(ch.QueueBind(dead, "dead-key", exchange, false, nil))
	dlx := func() amqp.Table {
		return amqp.Table{
			"x-dead-letter-exchange": exchange, "x-dead-letter-routing-key": "dead-key",
		}
	}
	rejecting := declareWith(ch, "dl.rejected", false, dlx())
	expiring := declareWith(ch, "dl.expired", false, dlx())
	args := dlx()
	args["x-max-length"] = 1
	short := declareWith(ch, "dl.maxlen", false, args)

	expectDead := func(body int, queue, reason string, expiration any) {
		delivery := await(ch, dead)
		place := fmt.Sprint(delivery.Exchange, delivery.RoutingKey, delivery.Expiration)
		expectEqual(place, fmt.Sprint(exchange, "dead-key", ""), "where a dead letter came from")
		expectEqual(number(delivery.Body), body, "dead letter")
		headers := delivery.Headers
		first := []any{headers["x-first-death-queue"], headers["x-first-death-reason"],
			headers["x-first-death-exchange"]}
		expectEqual(first, []any{queue, reason, ""}, "first death")
		deaths := deathsOf(delivery)
		expectEqual(len(deaths), 1, "deaths")
		expectDeath(deaths[0], queue, reason, 1)
		expectEqual(deaths[0]["original-expiration"], expiration, "original expiration")
		at, ok := deaths[0]["time"].(time.Time)
		expect(ok && time.Since(at).Abs() < time.Hour, "time of death: %#v", deaths[0]["time"])
	}

	send(ch, rejecting, 0, amqp.Publishing{})
	delivery, found, err := ch.Get(rejecting, false)
	must(err)
	expect(found, "no message")
	must(delivery.Reject(false))
	expectDead(0, rejecting, "rejected", nil)
	send(ch, expiring, 1, amqp.Publishing{Expiration: "50"})
	expectDead(1, expiring, "expired", "50")
	send(ch, short, 2, amqp.Publishing{})
	send(ch, short, 3, amqp.Publishing{})
	expectDead(2, short, "maxlen", nil)
	expectEqual(drain(ch, short), []int{3}, "left in the short queue")
}

func retryLoop() {
	conn := connect()
	defer closeAll(conn)
	ch := confirming(conn)
	work := declareWith(ch, "retry.work", false, amqp.Table{
		"x-dead-letter-exchange": "", "x-dead-letter-routing-key": prefix + ".retry.wait",
	})
	wait := declareWith(ch, "retry.wait", false, amqp.Table{
		"x-dead-letter-exchange": "", "x-dead-letter-routing-key": work, "x-message-ttl": 50,
	})
	consuming := channel(conn)
	deliveries := consume(consuming, work, nil)
	send(ch, work, 7, amqp.Publishing{})
	for attempt := 1; attempt <= rounds; attempt++ {
		delivery := receive(deliveries, "attempt "+strconv.Itoa(attempt))
		must(delivery.Reject(false))
	}
	last := receive(deliveries, "the last attempt")
	came := fmt.Sprint(string(last.Body), last.Redelivered)
	expectEqual(came, fmt.Sprint("7", false), "came back")
	deaths := deathsOf(last)
	expectEqual(len(deaths), 2, "deaths")
	// The last death comes first.
	expectDeath(deaths[0], wait, "expired", rounds)
	expectDeath(deaths[1], work, "rejected", rounds)
	must(last.Ack(false))
	must(consuming.Close())
	expectEqual([]int{count(ch, work), count(ch, wait)}, []int{0, 0}, "messages left")
}

func maxLength() {
	conn := connect()
	defer closeAll(conn)
	ch := confirming(conn)
	newest := declareWith(ch, "maxlen.drop", false, amqp.Table{"x-max-length": 3})
	all := []bool{true, true, true, true, true}
	expectEqual(sendAll(ch, newest, 5), all, "acked of drop-head")
	expectEqual(drain(ch, newest), []int{2, 3, 4}, "kept by drop-head")
	oldest := declareWith(ch, "maxlen.reject", false, amqp.Table{
		"x-max-length": 2, "x-overflow": "reject-publish",
	})
	half := []bool{true, true, false, false}
	expectEqual(sendAll(ch, oldest, 4), half, "acked of reject-publish")
	expectEqual(drain(ch, oldest), []int{0, 1}, "kept by reject-publish")
	expect(send(ch, oldest, 4, amqp.Publishing{}), "a nack although there is room again")
	dead := declareWith(ch, "maxlen.dead", false, nil)
	passing := declareWith(ch, "maxlen.dlx", false, amqp.Table{
		"x-max-length": 1, "x-overflow": "reject-publish-dlx",
		"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead,
	})
	expectEqual(sendAll(ch, passing, 2), []bool{true, false}, "acked of reject-publish-dlx")
	letter := await(ch, dead)
	expectEqual(number(letter.Body), 1, "the dead letter")
	expectDeath(deathsOf(letter)[0], passing, "maxlen", 1)
}

func priorityQueue() {
	conn := connect()
	defer closeAll(conn)
	ch := confirming(conn)
	queue := declareWith(ch, "priority", false, amqp.Table{"x-max-priority": 5})
	// To amqp091-go a priority of 0 is the same as none.
	for body, priority := range []uint8{1, 5, 0, 3, 9} {
		send(ch, queue, body, amqp.Publishing{Priority: priority})
	}
	expectEqual(drain(ch, queue), []int{1, 4, 3, 0, 2}, "order")
}

func singleActive() {
	publishing, one, two, three := connect(), connect(), connect(), connect()
	defer closeAll(publishing, one, three)
	ch, first := confirming(publishing), channel(one)
	queue := declareWith(ch, "single", false, amqp.Table{"x-single-active-consumer": true})
	firsts := consume(first, queue, nil)
	seconds, thirds := consume(channel(two), queue, nil), consume(channel(three), queue, nil)
	sendAll(ch, queue, 3)
	last := receiveBodies(firsts, []int{0, 1, 2}, "the first consumer's")
	must(last.Ack(true))
	must(first.Cancel("c", false))
	send(ch, queue, 3, amqp.Publishing{})
	receiveBodies(seconds, []int{3}, "after the cancel")
	// What the closed connection held goes to the next consumer.
	must(two.Close())
	last = receiveBodies(thirds, []int{3}, "after the close")
	expect(last.Redelivered, "the message of the closed connection is not marked redelivered")
}

func consumerPriority() {
	conn := connect()
	defer closeAll(conn)
	ch, lower, higher := confirming(conn), channel(conn), channel(conn)
	queue := declareWith(ch, "consumers", false, nil)
	lows := consume(lower, queue, nil)
	must(higher.Qos(2, 0, false))
	highs := consume(higher, queue, amqp.Table{"x-priority": 10})
	sendAll(ch, queue, 4)
	receiveBodies(highs, []int{0, 1}, "the high consumer's")
	receiveBodies(lows, []int{2, 3}, "the low consumer's")
}

func limitDeliveries() {
	conn := connect()
	defer closeAll(conn)
	ch := confirming(conn)
	dead := declareWith(ch, "limit.dead", false, nil)
	queue := declareWith(ch, "limit", true, amqp.Table{
		"x-queue-type": "quorum", "x-delivery-limit": deliveryLimit,
		"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead,
	})
	send(ch, queue, 7, amqp.Publishing{})
	deliveries := consume(channel(conn), queue, nil)
	for times := 0; times <= deliveryLimit; times++ {
		delivery := receive(deliveries, "a delivery")
		expectEqual(delivery.Redelivered, times > 0, "redelivered")
		counted, found := delivery.Headers["x-delivery-count"]
		expectEqual(found, times > 0, "x-delivery-count is there")
		expect(!found || fmt.Sprint(counted) == strconv.Itoa(times), "came as %v", counted)
		must(delivery.Nack(false, true))
	}
	letter := await(ch, dead)
	expectEqual(number(letter.Body), 7, "the dead letter")
	expectDeath(deathsOf(letter)[0], queue, "delivery_limit", 1)
	expectEqual(len(deliveries), 0, "deliveries beyond the limit")
}

func quorumDeclare() {
	conn := connect()
	defer closeAll(conn)
	ch := confirming(conn)
	quorum := amqp.Table{"x-queue-type": "quorum", "x-delivery-limit": 3, "x-max-length": 10}
	queue := declareWith(ch, "quorum", true, quorum)
	declareWith(ch, "quorum", true, quorum)
	persistent := amqp.Publishing{DeliveryMode: amqp.Persistent}
	expect(send(ch, queue, 1, persistent), "a nack")
	message := await(ch, queue)
	came := fmt.Sprint(string(message.Body), message.Redelivered)
	expectEqual(came, fmt.Sprint("1", false), "the message")
	other := queueName("quorum.refused")
	_, err := channel(conn).QueueDeclare(queue, true, false, false, false, nil)
	expectCode(err, amqp.PreconditionFailed, "the same name as a classic queue")
	_, err = channel(conn).QueueDeclare(other, false, false, false, false, quorum)
	expectCode(err, amqp.PreconditionFailed, "a transient quorum queue")
	quorum["x-max-priority"] = 5
	_, err = channel(conn).QueueDeclare(other, true, false, false, false, quorum)
	expectCode(err, amqp.PreconditionFailed, "a quorum queue with priorities")
	left, err := ch.QueueDelete(queue, false, false, false)
	must(err)
	expectEqual(left, 0, "deleted with")
}
