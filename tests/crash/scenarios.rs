//! What rounds are about.
//!
//! Owns the plans: which queues there are, who publishes and who consumes. It must not run them.

use super::channel::Route;
use super::consumer::Consumer;
use super::ledger::{Order, Queue};
use super::publisher::Publisher;
use super::random::Random;
use super::round::{Plan, Work};
use super::transactions::Transactions;

/// A plan whose first queue takes the marks of consumers. Half of them have little memory for each
/// queue, so that most of what waits is read back from the disk.
fn plan(crashes: u32, random: &mut Random) -> (Plan, Route) {
    let memory = random.pick(&["64KiB", "8MiB"]);
    let config = format!("[store]\nqueue_memory = \"{memory}\"\n");
    let mut plan = Plan { config, crashes, work_ms_max: 400, ..Plan::default() };
    let (_, marks) = plan.durable("marks");
    (plan, marks)
}

/// Several queues and publishers; consumers acknowledge in any order, requeue and reject.
pub fn queues(random: &mut Random) -> Plan {
    let (mut plan, marks) = plan(2, random);
    let mut routes = Vec::new();
    for number in 0..random.between(1, 4) {
        let (queue, route) = plan.durable(&format!("plain-{number}"));
        for _ in 0..random.between(0, 2) {
            plan.queues[queue].0.is_consumed = true;
            let name = plan.queues[queue].0.name.clone();
            plan.clients.push(Work::Consume(Consumer::of(queue, &name, &marks, random)));
        }
        routes.push(route);
    }
    for _ in 0..random.between(1, 3) {
        plan.clients.push(Work::Publish(Publisher::to(routes.clone(), random)));
    }
    plan
}

/// Rejected messages go to another queue, also by way of a fanout to two.
pub fn dead_letters(random: &mut Random) -> Plan {
    let (mut plan, marks) = plan(2, random);
    let mut dead = Queue::durable("dead");
    (dead.order, dead.is_consumed) = (Order::Any, random.percent(30));
    let other = Queue { name: "dead-too".to_owned(), is_consumed: false, ..dead.clone() };
    let (dead, other) = (plan.queue(dead, "durable"), plan.queue(other, "durable"));
    plan.setup.push("exchange.declare exchange=graves type=fanout durable".to_owned());
    plan.setup.push("queue.bind queue=dead exchange=graves".to_owned());
    plan.setup.push("queue.bind queue=dead-too exchange=graves".to_owned());
    let mut routes = Vec::new();
    for (name, target, letters) in [
        ("to-one", "x-dead-letter-exchange=\"\",x-dead-letter-routing-key=dead", vec![dead]),
        ("to-both", "x-dead-letter-exchange=graves", vec![dead, other]),
    ] {
        let mut queue = Queue::durable(name);
        (queue.dead_letters, queue.is_consumed) = (letters, true);
        let queue = plan.queue(queue, &format!("durable arguments=({target})"));
        let mut consumer = Consumer::of(queue, name, &marks, random);
        consumer.reject_percent = *random.pick(&[10, 60, 100]);
        consumer.requeue_percent = 0;
        plan.clients.push(Work::Consume(consumer));
        routes.push(Route::to(name, queue));
    }
    if plan.queues[dead].0.is_consumed {
        let consumer = Consumer { reject_percent: 0, ..Consumer::of(dead, "dead", &marks, random) };
        plan.clients.push(Work::Consume(consumer));
    }
    plan.clients.push(Work::Publish(Publisher::to(routes, random)));
    plan
}

/// Thousands die in one moment, by their time and by being rejected, and the broker with them.
/// RabbitMQ 3.10.8 loses many of them.
pub fn dead_letters_in_bulk(random: &mut Random) -> Plan {
    let (mut plan, marks) = plan(2, random);
    let mut dead = Queue::durable("dead");
    dead.order = Order::Any;
    let dead = plan.queue(dead, "durable");
    let letters = "x-dead-letter-exchange=\"\",x-dead-letter-routing-key=dead";
    let mut routes = Vec::new();
    for (name, ttl_ms) in [("mortal", Some(150)), ("refused", None)] {
        let mut queue = Queue::durable(name);
        (queue.dead_letters, queue.ttl_ms) = (vec![dead], ttl_ms);
        queue.is_consumed = name == "refused";
        let ttl = ttl_ms.map_or(String::new(), |ttl| format!("x-message-ttl={ttl},"));
        let queue = plan.queue(queue, &format!("durable arguments=({ttl}{letters})"));
        routes.push(Route::to(name, queue));
    }
    let mut consumer = Consumer::of(routes[1].queues[0], "refused", &marks, random);
    (consumer.prefetch, consumer.reject_percent, consumer.requeue_percent) = (0, 100, 0);
    consumer.multiple_percent = 100;
    plan.clients.push(Work::Consume(consumer));
    for route in routes {
        let publisher = Publisher::to(vec![route], random);
        let size = Some((0, 100));
        plan.clients.push(Work::Publish(Publisher {
            window: 1000,
            limit: 3000,
            size,
            ..publisher
        }));
    }
    plan.work_ms_max = 350;
    plan
}

/// Large messages, half written when the broker dies. LavinMQ 2.9.1 delivers the half, or loses the
/// queue that holds it.
pub fn large(random: &mut Random) -> Plan {
    let (mut plan, marks) = plan(3, random);
    let mut routes = Vec::new();
    for name in ["large", "larger"] {
        let (queue, route) = plan.durable(name);
        if random.percent(50) {
            plan.queues[queue].0.is_consumed = true;
            plan.clients.push(Work::Consume(Consumer::of(queue, name, &marks, random)));
        }
        routes.push(route);
    }
    for size in [(50_000, 200 * 1024), (0, 20_000)] {
        let publisher = Publisher::to(routes.clone(), random);
        let (limit, size) = (150, Some(size));
        plan.clients.push(Work::Publish(Publisher { window: 100, limit, size, ..publisher }));
    }
    plan.work_ms_max = 200;
    plan
}

/// One message in several queues, some of them consumed.
pub fn fanout(random: &mut Random) -> Plan {
    let (mut plan, marks) = plan(2, random);
    plan.setup.push("exchange.declare exchange=all type=fanout durable".to_owned());
    plan.setup.push("exchange.declare exchange=some type=topic durable".to_owned());
    let (mut all, mut some) = (Vec::new(), Vec::new());
    for number in 0..random.between(2, 6) {
        let name = format!("copy-{number}");
        let (queue, _) = plan.durable(&name);
        plan.setup.push(format!("queue.bind queue={name} exchange=all"));
        all.push(queue);
        if number % 2 == 0 {
            plan.setup.push(format!("queue.bind queue={name} exchange=some routing_key=a.#"));
            some.push(queue);
        }
        if random.percent(40) {
            plan.queues[queue].0.is_consumed = true;
            plan.clients.push(Work::Consume(Consumer::of(queue, &name, &marks, random)));
        }
    }
    let to = |exchange: &str, queues| Route {
        exchange: exchange.to_owned(),
        key: "a.b".to_owned(),
        queues,
    };
    let routes = vec![to("all", all), to("some", some)];
    for _ in 0..2 {
        let publisher = Publisher { limit: 800, ..Publisher::to(routes.clone(), random) };
        plan.clients.push(Work::Publish(publisher));
    }
    plan
}

/// Priorities, with and without a consumer.
pub fn priorities(random: &mut Random) -> Plan {
    let (mut plan, marks) = plan(2, random);
    let mut routes = Vec::new();
    for (name, max) in [("two", 1), ("ten", 9), ("many", 255)] {
        let mut queue = Queue::durable(name);
        queue.order = Order::Priority(max);
        queue.is_consumed = random.percent(50);
        let is_consumed = queue.is_consumed;
        let queue = plan.queue(queue, &format!("durable arguments=(x-max-priority={max})"));
        if is_consumed {
            plan.clients.push(Work::Consume(Consumer::of(queue, name, &marks, random)));
        }
        routes.push(Route::to(name, queue));
    }
    for max in [4, 255] {
        let publisher = Publisher::to(routes.clone(), random);
        plan.clients.push(Work::Publish(Publisher { priority_max: Some(max), ..publisher }));
    }
    plan
}

/// Messages that expire: by their own time or their queue's, dropped or to another queue.
pub fn expiry(random: &mut Random) -> Plan {
    let (mut plan, _) = plan(2, random);
    let mut dead = Queue::durable("dead");
    dead.order = Order::Any;
    let dead = plan.queue(dead, "durable");
    let (_, own) = plan.durable("own");
    let mut routes = vec![own];
    for (name, ttl_ms, arguments) in [
        ("dropping", 700, "x-message-ttl=700"),
        (
            "burying",
            500,
            "x-message-ttl=500,x-dead-letter-exchange=\"\",x-dead-letter-routing-key=dead",
        ),
    ] {
        let mut queue = Queue::durable(name);
        queue.ttl_ms = Some(ttl_ms);
        queue.dead_letters.extend((name == "burying").then_some(dead));
        let queue = plan.queue(queue, &format!("durable arguments=({arguments})"));
        routes.push(Route::to(name, queue));
    }
    for _ in 0..2 {
        let ttls_ms = vec![None, Some(200), Some(900), Some(3000), Some(60_000)];
        let publisher = Publisher { ttls_ms, limit: 1000, ..Publisher::to(routes.clone(), random) };
        plan.clients.push(Work::Publish(publisher));
    }
    plan.settle_ms = random.between(0, 900);
    plan
}

/// Quorum queues: delivery counts, a delivery limit with dead letters, two priorities. RabbitMQ
/// 3.10.8 may answer 541, or not at all, when such a queue is used after a kill.
pub fn quorum(random: &mut Random) -> Plan {
    let (mut plan, marks) = plan(2, random);
    let mut dead = Queue::durable("dead");
    dead.order = Order::Any;
    let dead = plan.queue(dead, "durable");
    let mut routes = Vec::new();
    for (name, limit, arguments) in [
        ("lasting", 1000, "x-queue-type=quorum,x-delivery-limit=1000"),
        (
            "limited",
            4,
            "x-queue-type=quorum,x-delivery-limit=4,x-dead-letter-exchange=\"\",\
             x-dead-letter-routing-key=dead",
        ),
        ("idle", 1000, "x-queue-type=quorum,x-delivery-limit=1000"),
    ] {
        let mut queue = Queue::durable(name);
        (queue.quorum, queue.order, queue.is_consumed) = (true, Order::Halves, name != "idle");
        queue.delivery_limit = Some(limit);
        queue.dead_letters.extend((name == "limited").then_some(dead));
        let queue = plan.queue(queue, &format!("durable arguments=({arguments})"));
        routes.push(Route::to(name, queue));
        if name != "idle" {
            let mut consumer = Consumer::of(queue, name, &marks, random);
            consumer.requeue_percent = *random.pick(&[10, 40, 80]);
            consumer.reject_percent = if name == "limited" { 10 } else { 0 };
            plan.clients.push(Work::Consume(consumer));
        }
    }
    let publisher = Publisher::to(routes, random);
    let persistent_percent = 80;
    plan.clients.push(Work::Publish(Publisher {
        priority_max: Some(9),
        persistent_percent,
        ..publisher
    }));
    plan
}

/// Transactions of publishes and acknowledgements, committed and rolled back.
pub fn transactions(random: &mut Random) -> Plan {
    let (mut plan, _) = plan(2, random);
    plan.setup.push("exchange.declare exchange=all type=fanout durable".to_owned());
    for client in 0..random.between(1, 3) {
        let (first, second) = (format!("tx-{client}"), format!("tx-{client}-too"));
        let (read, own) = plan.durable(&first);
        let (other, to_other) = plan.durable(&second);
        plan.queues[read].0.is_consumed = true;
        let exchange = format!("both-{client}");
        plan.setup.push(format!("exchange.declare exchange={exchange} type=fanout durable"));
        plan.setup.push(format!("queue.bind queue={first} exchange={exchange}"));
        plan.setup.push(format!("queue.bind queue={second} exchange={exchange}"));
        let both = Route { exchange, key: String::new(), queues: vec![read, other] };
        plan.clients.push(Work::Transact(Transactions { routes: vec![own, to_other, both] }));
    }
    plan
}

/// Delayed messages come, and not before their time.
pub fn delayed(random: &mut Random) -> Plan {
    let (mut plan, _) = plan(2, random);
    let mut queue = Queue::durable("later");
    queue.order = Order::Due;
    let queue = plan.queue(queue, "durable");
    plan.setup.push(
        "exchange.declare exchange=delays type=x-delayed-message durable \
         arguments=(x-delayed-type=direct)"
            .to_owned(),
    );
    plan.setup.push("queue.bind queue=later exchange=delays routing_key=k".to_owned());
    let route = Route { exchange: "delays".to_owned(), key: "k".to_owned(), queues: vec![queue] };
    for _ in 0..2 {
        let delay_ms_max = Some(*random.pick(&[50, 800, 1500]));
        let publisher = Publisher { delay_ms_max, ..Publisher::to(vec![route.clone()], random) };
        plan.clients.push(Work::Publish(Publisher { limit: 500, ..publisher }));
    }
    plan.settle_ms = 3500;
    plan
}

/// What must not survive: transient messages, and queues that are not durable.
pub fn transient(random: &mut Random) -> Plan {
    let (mut plan, marks) = plan(2, random);
    let (durable, to_durable) = plan.durable("lasting");
    let mut routes = vec![to_durable];
    for (name, fields) in [("passing", ""), ("auto", "auto_delete")] {
        let mut queue = Queue::durable(name);
        queue.durable = false;
        let queue = plan.queue(queue, fields);
        routes.push(Route::to(name, queue));
    }
    if random.percent(50) {
        plan.queues[durable].0.is_consumed = true;
        plan.clients.push(Work::Consume(Consumer::of(durable, "lasting", &marks, random)));
    }
    for _ in 0..2 {
        let publisher = Publisher::to(routes.clone(), random);
        plan.clients.push(Work::Publish(Publisher { persistent_percent: 50, ..publisher }));
    }
    plan
}
