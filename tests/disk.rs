//! A disk that fills up.
//!
//! Owns the proof that publishers are blocked while there is too little room, that everybody else
//! goes on, and that they are let go when there is room again. It must not look into the broker.

mod support;

use std::fs::{self, File};
use std::io::Write;

use support::{Broker, Client, settings, unique, wait_until};

const MIB: u64 = 1 << 20;

#[test]
fn publishers_are_blocked_from_the_first_one_on_and_the_others_are_served() {
    if Broker::external().is_some() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    // No disk is as large.
    let config = settings::disk_free_limit(1 << 50);
    let broker = Broker::on_data_dir(&data.path().join("data"), &config);
    let mut publisher = Client::open(&broker);
    let q = unique("full");
    publisher.declare(1, &format!("queue={q}"));
    publisher.put(1, &q, "held back");
    let blocked = publisher.expect("0 connection.blocked");
    assert_eq!(blocked["reason"].text(), "low on disk");
    let mut other = Client::open(&broker);
    other.call(1, &format!("basic.consume queue={q}"));
    assert_eq!(other.counts(1, &q), (0, 1), "nothing was taken in");
    assert!(broker.log().contains("disk alarm set: publishers are blocked"), "{}", broker.log());
}

#[test]
fn publishers_go_on_when_there_is_room_again() {
    let (size, limit, taken) = (256 * MIB, 128 * MIB, 160 * MIB);
    let config = settings::disk_free_limit(limit);
    if Broker::external().is_some() {
        return;
    }
    let Some((broker, disk)) = Broker::on_small_disk(size, &config) else { return };
    let mut publisher = Client::open(&broker);
    let mut consumer = Client::open(&broker);
    let q = unique("full");
    publisher.declare(1, &format!("queue={q}"));
    publisher.call(1, "confirm.select");
    publisher.put(1, &q, "before");
    assert!(publisher.confirmed_up_to(1, 1));

    let filler = disk.join("filler");
    let mut file = File::create(&filler).unwrap();
    (0..taken / MIB).for_each(|_| file.write_all(&[0; MIB as usize]).unwrap());
    wait_until("the disk alarm", || broker.log().contains("disk alarm set"));
    publisher.put(1, &q, "meanwhile");
    let blocked = publisher.expect("0 connection.blocked");
    assert_eq!(blocked["reason"].text(), "low on disk");
    let waiting = consumer.get(1, &format!("queue={q} no_ack")).unwrap();
    assert_eq!(waiting.text(), "before", "who consumes is served");
    assert_eq!(consumer.counts(1, &q), (0, 0), "nothing was taken in");

    fs::remove_file(&filler).unwrap();
    drop(file);
    publisher.expect("0 connection.unblocked");
    assert!(publisher.confirmed_after(1, 1, 2));
    assert_eq!(consumer.get(1, &format!("queue={q} no_ack")).unwrap().text(), "meanwhile");
    assert!(broker.log().contains("disk alarm cleared"), "{}", broker.log());
}
