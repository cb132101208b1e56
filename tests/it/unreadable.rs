//! Messages that the AMQP client cannot decode: parked beside the others, seen, sent back, dropped.

use crate::{
    operations::publish_raw_body,
    support::{
        amqp::Client,
        daemon::{Setup, told},
        eventually,
        flow::Flow,
        ledger::{Kind, Place},
        payments::Payments,
        rabbit,
    },
};
use lapin::ExchangeKind;

/// Flags of properties (AMQP 0-9-1, "class basic").
const CONTENT_TYPE: u16 = 0x8000;
const HEADERS: u16 = 0x2000;
const MESSAGE_ID: u16 = 0x0080;

/// A message id that is no UTF-8.
const BAD_ID: &[u8] = b"\x02\xff\xfe";

fn points(payment: &str) -> Vec<u8> {
    format!(r#"{{"paymentId":"{payment}","userId":"odd","integral":7}}"#).into_bytes()
}

fn publish(exchange: &str, key: &str, flags: u16, properties: &[u8], body: &[u8]) {
    publish_raw_body(rabbit::shared().port, exchange, key.as_bytes(), flags, properties, body);
}

/// Five messages, each with another thing that lapin does not decode; one with a body of several frames.
fn publish_unreadable(client: &Client, setup: &Setup, number: usize) {
    let table = |entries: &[u8]| [&u32::try_from(entries.len()).unwrap().to_be_bytes()[..], entries].concat();
    let to_setup =
        |flags, properties: &[u8], body: &[u8]| publish(&setup.exchange, &setup.key, flags, properties, body);
    let body = points(&format!("odd-{number}"));
    match number {
        0 => to_setup(MESSAGE_ID, BAD_ID, &body),
        // A sound header before the bad one.
        1 => to_setup(HEADERS | MESSAGE_ID, &[&table(b"\x05traceS\0\0\0\x01t\x01\xffV")[..], b"\x01m"].concat(), &body),
        2 => to_setup(CONTENT_TYPE, b"\x01\xc3", &[&vec![b' '; 300_000][..], &body].concat()),
        3 => to_setup(HEADERS, &table(b"\x01aA\0\0\0\x05F\0\0\0\0\x01aF\0\0\0\x03\x01\xffV"), &body),
        _ => {
            let exchange = format!("{}.fanout", setup.exchange);
            client.declare_exchange(&exchange, ExchangeKind::Fanout);
            client.bind(&setup.credit_queue, &exchange, "");
            publish_raw_body(rabbit::shared().port, &exchange, b"\xff\x00", MESSAGE_ID, b"\x01k", &body);
            client.delete_exchange(&exchange);
        }
    }
}

fn dead(setup: &Setup, arguments: &[&str]) -> serde_json::Value {
    setup.json(&[&["dead"], arguments, &["--json"]].concat())
}

fn credits(setup: &Setup) -> u64 {
    setup.json(&["balance", "odd", "--json"])["balance"].as_u64().unwrap() / 7
}

fn five_among_ten_thousand(queue_type: &str) {
    let place = Place::new(Kind::Sqlite);
    let more = format!("queue_type = {queue_type:?}\n[message]\nmax_body_bytes = 1048576");
    let setup = Setup::new(&rabbit::shared().url(), &place.url, &more);
    assert!(setup.run(&["topology", "declare"]).status.success());
    let client = Client::connect(&rabbit::shared().url());
    let mut flow = Flow::new(13);
    for number in 0..5 {
        flow.publish(&client, &setup, 2000);
        publish_unreadable(&client, &setup, number);
    }
    let daemon = setup.start();
    daemon.wait_for("they are parked", |_| client.ready(&setup.dead_queue)?.eq(&5).then_some(()));
    daemon.wait_for("all others are settled", |daemon| {
        let settled =
            |outcome| daemon.metric(&format!("pointsd_messages_total{{queue=\"credit\",outcome=\"{outcome}\"}}"));
        (settled("credited") + settled("duplicate")).eq(&10_000.0).then_some(())
    });
    assert_eq!(daemon.metric(r#"pointsd_dead_lettered_total{reason="unreadable"}"#), 5.0);
    let log = daemon.log();
    assert!(!log.contains("pausing") && !log.contains("lost:"), "no session ended: {log}");
    assert_eq!(log.matches("message parked").count(), 5, "{log}");

    let shown = dead(&setup, &["show", "--reason", "unreadable"]);
    for (number, fault) in [
        (0, "message_id is not UTF-8"),
        (1, "the name of a header is not UTF-8"),
        (2, "content_type is not UTF-8"),
        (3, "the value of a header cannot be decoded"),
        (4, "the routing key is not UTF-8"),
    ] {
        let of_number = |message: &&serde_json::Value| message["payment_id"] == format!("odd-{number}");
        let message = shown.as_array().unwrap().iter().find(of_number).unwrap();
        assert_eq!(message["error"], format!("the AMQP client cannot decode the message: {fault}"));
        assert_eq!(message["source_queue"], setup.credit_queue);
        let raw = message["headers"]["x-pointsd-raw-properties"].as_str().unwrap();
        assert!(raw.len() >= 4 && raw.bytes().all(|digit| digit.is_ascii_hexdigit()), "{raw}");
        assert!(number != 0 || raw == "008002fffe", "{raw}");
        assert!(number != 1 || (message["headers"]["trace"] == "t" && message["message_id"] == "m"), "{message}");
    }

    // Sent back with what could be read, it is a message like any other.
    let sent = dead(&setup, &["requeue", "--reason", "unreadable", "--limit", "4"]);
    assert_eq!((&sent["sent"], &sent["returned"]), (&4.into(), &0.into()), "{sent}");
    daemon.wait_for("they are credited", |_| credits(&setup).eq(&4).then_some(()));
    let dropped = dead(&setup, &["drop", "--reason", "unreadable", "--yes"]);
    assert_eq!(dropped["dropped"], 1);
    eventually("nothing is left", || client.ready(&setup.dead_queue)?.eq(&0).then_some(()));
    daemon.stop();
    assert_eq!(setup.json(&["verify", "--json"])["violations"], 0);
    assert_eq!(client.ready(&setup.credit_queue), Some(0));
}

#[test]
fn unreadable_messages_are_parked_and_hold_up_no_other_on_a_quorum_queue() {
    five_among_ten_thousand("quorum");
}

#[test]
fn unreadable_messages_are_parked_and_hold_up_no_other_on_a_classic_queue() {
    five_among_ten_thousand("classic");
}

#[test]
fn commands_work_on_a_dead_queue_that_holds_what_lapin_cannot_decode() {
    let place = Place::new(Kind::Sqlite);
    place.open().migrate().unwrap();
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "delivery_limit = 1");
    assert!(setup.run(&["topology", "declare"]).status.success());
    let client = Client::connect(&rabbit::shared().url());
    publish(&setup.exchange, &setup.key, MESSAGE_ID, BAD_ID, &points("moved"));
    for _ in 0..2 {
        eventually("it is there", || client.ready(&setup.credit_queue)?.eq(&1).then_some(()));
        // The client of these tests is lapin as it is.
        Client::connect(&rabbit::shared().url()).lose_connection_over_a_message_of(&setup.credit_queue);
    }
    eventually("the broker has moved it", || client.ready(&setup.dead_queue)?.eq(&1).then_some(()));
    // Another program has put this one there, and forged what a daemon would say.
    let forged = b"\x14x-pointsd-unreadableS\0\0\0\x01e\x01\xffV";
    let table = [&u32::try_from(forged.len()).unwrap().to_be_bytes()[..], forged].concat();
    publish("", &setup.dead_queue, HEADERS, &table, b"\xff");

    let listed = dead(&setup, &["list", "--each"]);
    assert_eq!(listed["messages"], 2, "{listed}");
    let shown = dead(&setup, &["show", "--reason", "unreadable"]);
    let of_broker = &shown[0];
    assert_eq!(
        (&of_broker["payment_id"], &of_broker["source_queue"]),
        (&"moved".into(), &setup.credit_queue.clone().into())
    );
    assert_eq!(of_broker["error"], "message_id is not UTF-8");
    assert!(of_broker["headers"]["x-pointsd-raw-properties"].as_str().unwrap().contains("02fffe"), "{of_broker}");
    assert_eq!(shown[1]["body_base64"], "/w==");
    let export = setup.run(&["dead", "export"]);
    assert!(export.status.success(), "{}", told(&export));
    assert_eq!(String::from_utf8_lossy(&export.stdout).lines().count(), 2);

    let daemon = setup.start();
    daemon.wait_ready();
    let sent = dead(&setup, &["requeue", "--payment", "moved"]);
    assert_eq!(sent["sent"], 1, "{sent}");
    daemon.wait_for("it is credited", |_| credits(&setup).eq(&1).then_some(()));
    assert_eq!(dead(&setup, &["drop", "--all", "--yes"])["dropped"], 1);
    eventually("nothing is left", || client.ready(&setup.dead_queue)?.eq(&0).then_some(()));
    daemon.stop();
}

#[test]
fn every_consumed_queue_parks_what_lapin_cannot_decode() {
    let (place, payments) = (Place::new(Kind::Sqlite), Payments::new());
    let name = crate::support::unique("source");
    let more = format!(
        "[pay_status]\nsource = \"sql\"\n{}[[source]]\nname = \"more\"\nexchange = \"{name}\"\nexchange_type = \"fanout\"\n\
         routing_key = \"\"\nqueue = \"{name}\"\nqueue_type = \"classic\"\nformat = \"credit\"\n",
        payments.settings()
    );
    let setup = Setup::new(&rabbit::shared().url(), &place.url, &more);
    let daemon = setup.start();
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    for queue in [&setup.check_queue, &name] {
        eventually("the queue is there", || client.ready(queue));
    }
    // A check message but for its message id: a requeue must find its content type.
    let checks = br#"{"version":1,"checks":[{"payment_id":"1","user_id":"u","points":5}]}"#;
    let content_type = b"\x00application/vnd.pointsd.checks+json";
    let length = u8::try_from(content_type.len() - 1).unwrap();
    let properties = [&[length][..], &content_type[1..], BAD_ID].concat();
    publish("", &setup.check_queue, CONTENT_TYPE | MESSAGE_ID, &properties, checks);
    publish("", &name, MESSAGE_ID, BAD_ID, &points("by-source"));
    daemon.wait_for("both are parked", |_| client.ready(&setup.dead_queue)?.eq(&2).then_some(()));
    payments.set(1, "TRADE_SUCCESS");
    let sent = dead(&setup, &["requeue", "--all"]);
    assert_eq!((&sent["sent"], &sent["returned"]), (&2.into(), &0.into()), "{sent}");
    daemon.wait_for("the check has credited", |_| {
        setup.json(&["balance", "u", "--json"])["balance"].eq(&5).then_some(())
    });
    daemon.wait_for("the source has credited", |_| credits(&setup).eq(&1).then_some(()));
    daemon.stop();
}
