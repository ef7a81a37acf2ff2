//! `x-message-deduplication` on queues, which RabbitMQ has by a community plugin only.

use super::*;

fn put_id(c: &mut Client, queue: &str, id: &str) {
    put(c, queue, &format!("headers=(id={id})"), id);
}

fn deduplicating(arguments: &str) -> Option<(Client, String)> {
    // RabbitMQ ignores the argument: there is nothing to compare.
    if broker().is_rabbitmq() {
        return None;
    }
    let arguments = format!("x-message-deduplication=true,x-deduplication-header=id{arguments}");
    Some(with_queue(&arguments))
}

#[test]
fn a_duplicate_is_dropped_while_the_other_is_there() {
    let Some((mut c, queue)) = deduplicating("") else { return };
    for id in ["a", "b", "a", "a"] {
        put_id(&mut c, &queue, id);
    }
    wait_for_ready(&mut c, &queue, 2);
    let (text, tag) = hold(&mut c, &queue);
    assert_eq!(text, "a");
    put_id(&mut c, &queue, "a");
    put_id(&mut c, &queue, "c");
    wait_for_ready(&mut c, &queue, 2);
    settle(&mut c, "ack", tag);
    put_id(&mut c, &queue, "a");
    wait_for_ready(&mut c, &queue, 3);
}

#[test]
fn a_cache_remembers_what_was_delivered() {
    let Some((mut c, queue)) = deduplicating(",x-cache-size=2") else { return };
    put_id(&mut c, &queue, "a");
    wait_for_ready(&mut c, &queue, 1);
    assert_eq!(drain(&mut c, &queue), ["a"]);
    put_id(&mut c, &queue, "a");
    put_id(&mut c, &queue, "b");
    put_id(&mut c, &queue, "c");
    put_id(&mut c, &queue, "a");
    wait_for_ready(&mut c, &queue, 3);
}
