// The conformance checks through amqp091-go: the run, its report and what the checks share.
//
// Each check runs on connections of its own, in a goroutine that is given up at its deadline. A
// check fails by panicking with a reason; no check knows of another.
package main

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	messages  = 10_000
	prefetch  = 100
	checkTime = 30 * time.Second
	bulkTime  = 60 * time.Second
	waitTime  = 10 * time.Second
)

type check struct {
	name string
	run  func()
}

var (
	uri       string
	prefix    string
	namesLock sync.Mutex
	queues    []string
	exchanges []string
)

func main() {
	uri = os.Getenv("AMQP_URI")
	if len(os.Args) > 1 {
		uri = os.Args[1]
	}
	if uri == "" {
		fmt.Fprintln(os.Stderr, "usage: client amqp://user:password@host:port/%2F   (or set AMQP_URI)")
		os.Exit(2)
	}
	var random [6]byte
	if _, err := rand.Read(random[:]); err != nil {
		panic(err)
	}
	prefix = "conformance.amqp091-go." + hex.EncodeToString(random[:])
	failed := 0
	for _, c := range checks() {
		limit := checkTime
		if c.name == "confirms" || c.name == "consume-two" {
			limit = bulkTime
		}
		if reason := within(limit, c.run); reason != "" {
			failed++
			fmt.Printf("FAIL %s: %s\n", c.name, strings.Join(strings.Fields(reason), " "))
		} else {
			fmt.Printf("ok %s\n", c.name)
		}
	}
	if reason := within(waitTime, sweep); reason != "" {
		fmt.Fprintln(os.Stderr, "sweep:", reason)
	}
	if failed > 0 {
		os.Exit(1)
	}
}

// within runs a check and returns why it failed, or nothing.
func within(limit time.Duration, run func()) string {
	outcome := make(chan string, 1)
	go func() {
		defer func() {
			if reason := recover(); reason != nil {
				outcome <- fmt.Sprint(reason)
			} else {
				outcome <- ""
			}
		}()
		run()
	}()
	select {
	case reason := <-outcome:
		return reason
	case <-time.After(limit):
		return fmt.Sprintf("no end within %v", limit)
	}
}

// queueName makes a queue name of this run, which the sweep at the end deletes.
func queueName(label string) string {
	namesLock.Lock()
	defer namesLock.Unlock()
	queues = append(queues, prefix+"."+label)
	return prefix + "." + label
}

// exchangeName makes an exchange name of this run, which the sweep at the end deletes.
func exchangeName(label string) string {
	namesLock.Lock()
	defer namesLock.Unlock()
	exchanges = append(exchanges, prefix+"."+label)
	return prefix + "." + label
}

// sweep deletes what the checks left, failed ones included.
func sweep() {
	conn := connect()
	defer conn.Close()
	for _, name := range queues {
		_, err := channel(conn).QueueDelete(name, false, false, false)
		must(err)
	}
	for _, name := range exchanges {
		must(channel(conn).ExchangeDelete(name, false, false))
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func expect(condition bool, format string, args ...any) {
	if !condition {
		panic(fmt.Sprintf(format, args...))
	}
}

func expectEqual(got, wanted any, what string) {
	expect(reflect.DeepEqual(got, wanted), "%s: got %#v, wanted %#v", what, got, wanted)
}

func expectCode(err error, code int, what string) *amqp.Error {
	var failure *amqp.Error
	expect(errors.As(err, &failure), "%s: no AMQP error but %v", what, err)
	expectEqual(failure.Code, code, what)
	return failure
}

func connect() *amqp.Connection {
	conn, err := amqp.Dial(uri)
	must(err)
	return conn
}

func channel(conn *amqp.Connection) *amqp.Channel {
	ch, err := conn.Channel()
	must(err)
	return ch
}

func confirming(conn *amqp.Connection) *amqp.Channel {
	ch := channel(conn)
	must(ch.Confirm(false))
	return ch
}

// closeAll closes what a check opened. One that is closed already stays silent: the check has
// failed then, and its own reason is the one to report.
func closeAll(closers ...interface{ Close() error }) {
	for _, closer := range closers {
		if err := closer.Close(); !errors.Is(err, amqp.ErrClosed) {
			must(err)
		}
	}
}

func declareQueue(ch *amqp.Channel, name string) {
	_, err := ch.QueueDeclare(name, false, false, false, false, nil)
	must(err)
}

func count(ch *amqp.Channel, name string) int {
	queue, err := ch.QueueDeclarePassive(name, false, false, false, false, nil)
	must(err)
	return queue.Messages
}

// publish sends the message and, on a confirming channel, waits for its ack.
func publish(ch *amqp.Channel, exchange, key, body string, headers amqp.Table) {
	message := amqp.Publishing{Body: []byte(body), Headers: headers}
	confirm, err := ch.PublishWithDeferredConfirm(exchange, key, false, false, message)
	must(err)
	if confirm != nil {
		awaitConfirm(confirm)
	}
}

func awaitConfirm(confirm *amqp.DeferredConfirmation) {
	select {
	case <-confirm.Done():
		expect(confirm.Acked(), "message %d was nacked", confirm.DeliveryTag)
	case <-time.After(waitTime):
		panic("timed out waiting for a confirm")
	}
}

func receive(deliveries <-chan amqp.Delivery, what string) amqp.Delivery {
	select {
	case delivery, open := <-deliveries:
		expect(open, "the consumer ended instead of %s", what)
		return delivery
	case <-time.After(waitTime):
		panic("timed out waiting for " + what)
	}
}

func until(condition func() bool, what string) {
	for deadline := time.Now().Add(waitTime); !condition(); time.Sleep(10 * time.Millisecond) {
		expect(time.Now().Before(deadline), "timed out waiting for %s", what)
	}
}

// drain returns the bodies in the queue, oldest first.
func drain(ch *amqp.Channel, queue string) []int {
	bodies := []int{}
	for {
		delivery, ok, err := ch.Get(queue, true)
		must(err)
		if !ok {
			return bodies
		}
		bodies = append(bodies, number(delivery.Body))
	}
}

func number(body []byte) int {
	value, err := strconv.Atoi(string(body))
	must(err)
	return value
}

// fill publishes all messages with up to a thousand confirms outstanding.
func fill(ch *amqp.Channel, queue string) {
	var outstanding []*amqp.DeferredConfirmation
	for index := 0; index < messages; index++ {
		message := amqp.Publishing{Body: []byte(strconv.Itoa(index))}
		confirm, err := ch.PublishWithDeferredConfirm("", queue, false, false, message)
		must(err)
		outstanding = append(outstanding, confirm)
		if len(outstanding) == 1000 {
			for _, confirm := range outstanding {
				awaitConfirm(confirm)
			}
			outstanding = nil
		}
	}
	for _, confirm := range outstanding {
		awaitConfirm(confirm)
	}
}

func wrongPasswordURI() string {
	wrong, err := url.Parse(uri)
	must(err)
	wrong.User = url.UserPassword("guest", "not the password")
	return wrong.String()
}
