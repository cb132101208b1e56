//! From the queue to the ledger: outcomes, settlement, and what is parked.

use crate::support::{
    amqp::{Client, text},
    daemon::{Daemon, Setup, told},
    eventually,
    flow::{Flow, work_off},
    ledger::{Kind, Place},
    rabbit, unique,
};
use lapin::{
    BasicProperties,
    message::BasicGetMessage,
    types::{AMQPValue, FieldArray, FieldTable, ShortString},
};
use pointsd::domain::credit::MAX_BALANCE;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/payments.jsonl");

/// A daemon on the shared broker, ready.
fn ready(place: &Place, more: &str) -> (Setup, Daemon, Client) {
    let setup = Setup::new(&rabbit::shared().url(), &place.url, more);
    let daemon = setup.start();
    daemon.wait_ready();
    (setup, daemon, Client::connect(&rabbit::shared().url()))
}

fn plain(bodies: &[&str]) -> Vec<(Vec<u8>, BasicProperties)> {
    bodies.iter().map(|body| (body.as_bytes().to_vec(), BasicProperties::default())).collect()
}

fn outcomes(daemon: &Daemon) -> [f64; 5] {
    ["credited", "duplicate", "conflict", "malformed", "rejected"]
        .map(|outcome| daemon.metric(&format!(r#"pointsd_messages_total{{queue="credit",outcome="{outcome}"}}"#)))
}

fn wait_for_outcomes(daemon: &Daemon, expected: [f64; 5]) {
    daemon.wait_for(&format!("outcomes {expected:?}"), |daemon| (outcomes(daemon) == expected).then_some(()));
}

fn dead(client: &Client, setup: &Setup, count: u32) -> Vec<BasicGetMessage> {
    eventually("the dead queue is filled", || client.ready(&setup.dead_queue)?.eq(&count).then_some(()));
    client.drain(&setup.dead_queue)
}

fn a_flow_is_credited_once(kind: Kind, more: &str) {
    let place = Place::new(kind);
    let (setup, daemon, client) = ready(&place, more);
    let mut flow = Flow::new(1);
    flow.publish(&client, &setup, 5000);
    work_off(&client, &setup, daemon);
    flow.assert_credited_once(&client, &setup);
}

#[test]
fn a_flow_through_a_quorum_queue_is_credited_once_in_sqlite() {
    a_flow_is_credited_once(Kind::Sqlite, "");
}

#[test]
fn a_flow_through_a_classic_queue_is_credited_once_in_postgresql() {
    a_flow_is_credited_once(Kind::Postgres, "queue_type = \"classic\"\nprefetch = 65535");
}

#[test]
fn every_message_of_a_batch_has_its_own_outcome() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let place = Place::new(kind);
        place.open().migrate().unwrap();
        let nearly = MAX_BALANCE - 5;
        place.execute(&format!("INSERT INTO points_balances (user_id, balance) VALUES ('rich', {nearly})"));
        let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
        let client = Client::connect(&rabbit::shared().url());
        // Everything stands in the queue before the daemon takes it, so that it comes in few batches.
        let first = setup.start();
        first.wait_ready();
        first.stop();
        let mut messages = plain(&[
            r#"{"paymentId": 1, "userId": "a", "integral": 10}"#,
            r#"{"paymentId": 1, "userId": "a", "integral": 10}"#,
            r#"{"paymentId": 1, "userId": "b", "integral": 10}"#,
            r#"{"paymentId": 2, "userId": "rich", "integral": 6}"#,
            r#"{"paymentId": 3, "userId": "rich", "integral": 5}"#,
            r#"{"paymentId": 4}"#,
            "\u{0}",
        ]);
        messages.extend((100..600).map(|payment| {
            (format!(r#"{{"paymentId":{payment},"userId":"c","integral":2}}"#).into_bytes(), BasicProperties::default())
        }));
        client.publish(&setup.exchange, &setup.key, messages);
        let daemon = setup.start();
        daemon.wait_ready();
        wait_for_outcomes(&daemon, [502.0, 1.0, 1.0, 2.0, 1.0]);
        assert_eq!(daemon.metric("pointsd_points_credited_total"), 1015.0);
        for (reason, count) in [("conflict", 1.0), ("malformed", 2.0), ("rejected", 1.0)] {
            assert_eq!(daemon.metric(&format!(r#"pointsd_dead_lettered_total{{reason="{reason}"}}"#)), count);
        }
        let mut parked: Vec<_> = dead(&client, &setup, 4)
            .iter()
            .map(|message| (text(message, "x-pointsd-reason").unwrap(), text(message, "x-pointsd-error").unwrap()))
            .collect();
        parked.sort();
        assert_eq!(
            parked,
            [
                ("conflict", "the payment is in the ledger with another user or other points"),
                ("malformed", "body is not JSON: expected value at line 1 column 1"),
                ("malformed", "userId is missing"),
                ("rejected", "the user's balance would leave its range of 9000000000000000000 points"),
            ]
            .map(|(reason, error)| (reason.to_owned(), error.to_owned()))
        );
        work_off(&client, &setup, daemon);
        assert_eq!(setup.json(&["balance", "rich", "--json"])["balance"], MAX_BALANCE);
        assert_eq!(setup.json(&["balance", "c", "--json"])["balance"], 1000);
    }
}

#[test]
fn a_parked_copy_keeps_what_is_foreign_and_loses_what_the_broker_would_act_on() {
    let place = Place::new(Kind::Sqlite);
    let (setup, daemon, client) = ready(&place, "");
    let elsewhere = unique("elsewhere");
    client.declare_queue(&elsewhere, &[]);
    client.bind(&elsewhere, &setup.exchange, &elsewhere);

    let mut death = FieldTable::default();
    for (name, value) in [("queue", setup.dead_queue.as_str()), ("reason", "expired"), ("exchange", "")] {
        death.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    death.insert("count".into(), AMQPValue::LongLongInt(1));
    let deaths = AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::FieldTable(death)]));
    let carbon = AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::LongString(elsewhere.as_str().into())]));
    let mut headers = FieldTable::default();
    for (name, value) in [
        ("x-death", deaths),
        ("x-first-death-queue", AMQPValue::LongString("q".into())),
        ("x-last-death-queue", AMQPValue::LongString("q".into())),
        ("x-delivery-count", AMQPValue::LongLongInt(900)),
        ("CC", carbon.clone()),
        ("BCC", carbon),
        ("trace", AMQPValue::LongString("t-1".into())),
        ("n", AMQPValue::LongLongInt(-5)),
    ] {
        headers.insert(name.into(), value);
    }
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_message_id("m-1".into())
        .with_correlation_id("c-1".into())
        .with_app_id("shop".into())
        .with_priority(4)
        .with_timestamp(1_700_000_000)
        .with_user_id("guest".into())
        .with_expiration("60000".into())
        .with_delivery_mode(1)
        .with_headers(headers);
    let body = "\u{feff}{\"paymentId\":  1}".as_bytes().to_vec();
    client.publish(&setup.exchange, &setup.key, [(body.clone(), properties)]);
    // Such headers alone would fill a frame.
    let mut long = FieldTable::default();
    long.insert("long".into(), AMQPValue::LongString("x".repeat(130_980).into()));
    let big = BasicProperties::default().with_message_id("m-2".into()).with_headers(long);
    client.publish(&setup.exchange, &setup.key, [(b"big".to_vec(), big)]);

    wait_for_outcomes(&daemon, [0.0, 0.0, 0.0, 2.0, 0.0]);
    let parked = dead(&client, &setup, 2);
    let of = |id: &str| {
        let has = |message: &&BasicGetMessage| {
            message.delivery.properties.message_id().as_ref().is_some_and(|given| given.as_str() == id)
        };
        parked.iter().find(has).unwrap()
    };
    let copy = of("m-1");
    assert_eq!(copy.delivery.data, body);
    let kept = &copy.delivery.properties;
    assert_eq!(*kept.content_type(), Some("application/json".into()));
    assert_eq!(*kept.correlation_id(), Some("c-1".into()));
    assert_eq!(*kept.app_id(), Some("shop".into()));
    assert_eq!((*kept.priority(), *kept.timestamp(), *kept.delivery_mode()), (Some(4), Some(1_700_000_000), Some(2)));
    assert_eq!((kept.user_id(), kept.expiration()), (&None, &None));
    let headers = kept.headers().as_ref().unwrap().inner();
    // The dead queue counts for itself again.
    assert_ne!(headers.get("x-delivery-count"), Some(&AMQPValue::LongLongInt(900)));
    let mut names: Vec<&str> = headers.keys().map(ShortString::as_str).collect();
    names.retain(|name| *name != "x-delivery-count");
    names.sort_unstable();
    assert_eq!(
        names,
        ["n", "trace", "x-pointsd-error", "x-pointsd-first-failed-at", "x-pointsd-reason", "x-pointsd-source-queue"]
    );
    assert_eq!((&headers["n"], text(copy, "trace")), (&AMQPValue::LongLongInt(-5), Some("t-1".into())));
    assert_eq!(text(copy, "x-pointsd-source-queue"), Some(setup.credit_queue.clone()));
    let failed_at = text(copy, "x-pointsd-first-failed-at").unwrap();
    assert!(failed_at.parse::<jiff::Timestamp>().is_ok(), "{failed_at}");

    let big = of("m-2");
    let headers = big.delivery.properties.headers().as_ref().unwrap().inner();
    assert_eq!(headers.get("x-pointsd-truncated"), Some(&AMQPValue::Boolean(true)));
    assert!(!headers.contains_key("long"));
    // The broker itself routed the original there by CC and BCC; the copy was not routed again.
    let carbons = client.drain(&elsewhere);
    assert!(!carbons.is_empty() && carbons.iter().all(|carbon| text(carbon, "x-pointsd-reason").is_none()));
    client.delete_queue(&elsewhere);
    daemon.stop();
}

#[test]
fn a_conflict_is_parked_with_both_versions() {
    let place = Place::new(Kind::Sqlite);
    let (setup, daemon, client) = ready(&place, "");
    let bodies =
        [r#"{"paymentId":"p","userId":"用户","integral":10}"#, r#"{"paymentId":"p","userId":"用户","integral":11}"#];
    client.publish(&setup.exchange, &setup.key, plain(&bodies));
    wait_for_outcomes(&daemon, [1.0, 0.0, 1.0, 0.0, 0.0]);
    let parked = dead(&client, &setup, 1);
    assert_eq!(parked[0].delivery.data, bodies[1].as_bytes());
    assert_eq!(text(&parked[0], "x-pointsd-ledger-user"), Some("用户".into()));
    let headers = parked[0].delivery.properties.headers().as_ref().unwrap().inner();
    assert_eq!(headers["x-pointsd-ledger-points"], AMQPValue::LongLongInt(10));
    assert!(daemon.log().contains("payment_id=\"p\""), "{}", daemon.log());
    daemon.stop();
}

#[test]
fn a_body_never_reaches_the_log_or_a_metric() {
    let place = Place::new(Kind::Sqlite);
    let (setup, daemon, client) = ready(&place, "[log]\nlevel = \"trace\"");
    let bodies = [
        r#"{"paymentId":"p","userId":"u","integral":10,"card":"SECRET-4711"}"#,
        r#"{"paymentId":"SECRET-4711\n","userId":"u","integral":10}"#,
        r#"{"paymentId":"x","userId":{"a":"SECRET-4711"},"integral":10}"#,
        r#""SECRET-4711""#,
        "SECRET-4711",
        r#"{"SECRET-4711"}"#,
    ];
    client.publish(&setup.exchange, &setup.key, plain(&bodies));
    wait_for_outcomes(&daemon, [1.0, 0.0, 0.0, 5.0, 0.0]);
    let metrics = daemon.get("/metrics").unwrap().1;
    for message in dead(&client, &setup, 5) {
        assert!(!text(&message, "x-pointsd-error").unwrap().contains("4711"));
    }
    let log = daemon.log();
    assert!(!log.contains("4711") && !metrics.contains("4711"), "{log}");
    assert!(!log.contains("guest:guest") && log.contains("message parked"), "{log}");
    daemon.stop();
}

#[test]
fn bodies_larger_than_the_limit_are_parked_whole() {
    let place = Place::new(Kind::Sqlite);
    let (setup, daemon, client) = ready(&place, "[message]\nmax_body_bytes = 1000");
    let large = format!(r#"{{"paymentId":1,"userId":2,"integral":3,"note":"{}"}}"#, "x".repeat(400_000));
    client.publish(&setup.exchange, &setup.key, plain(&[&large]));
    wait_for_outcomes(&daemon, [0.0, 0.0, 0.0, 1.0, 0.0]);
    let parked = dead(&client, &setup, 1);
    assert_eq!(parked[0].delivery.data, large.as_bytes());
    assert_eq!(
        text(&parked[0], "x-pointsd-error"),
        Some(format!("body has {} bytes; at most 1000 are accepted", large.len()))
    );
    daemon.stop();
}

#[test]
fn a_recorded_file_gives_the_same_ledger_with_and_without_a_broker() {
    let through_broker = Place::new(Kind::Sqlite);
    // One writer at a time keeps the order of the queue: of two that conflict the first one counts, as in the file.
    let setup = Setup::new(&rabbit::shared().url(), &through_broker.url, "");
    let daemon = setup.start_with(|command| {
        command.env("POINTSD_LEDGER__POOL_SIZE", "1");
    });
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    let published = setup.run(&["publish", FIXTURES]);
    assert!(published.status.success(), "{}", told(&published));
    assert_eq!(String::from_utf8_lossy(&published.stdout), "published 10, each confirmed\n");
    wait_for_outcomes(&daemon, [5.0, 2.0, 1.0, 2.0, 0.0]);
    work_off(&client, &setup, daemon);

    for kind in [Kind::Sqlite, Kind::Postgres] {
        let place = Place::new(kind);
        // Nobody listens there: replay needs no broker.
        let replayed = Setup::new("amqp://127.0.0.1:1/%2f", &place.url, "");
        let first = replayed.run(&["replay", FIXTURES]);
        assert_eq!(first.status.code(), Some(1), "a line was bad: {}", told(&first));
        assert_eq!(
            String::from_utf8_lossy(&first.stdout),
            "line 8: conflict: payment 202002201102: the payment is in the ledger with another user or other points: \
             user 1102, 50 points\n\
             line 9: malformed: payment 202002201105: integral is out of range; must be 1 to 1000000000\n\
             line 10: malformed: body is not JSON: expected value at line 1 column 1\n\
             credited 5, duplicate 2, conflict 1, malformed 2, rejected 0, exhausted 0\n"
        );
        let again = replayed.json(&["replay", FIXTURES, "--json"]);
        assert_eq!((&again["credited"], &again["duplicate"], &again["conflict"]), (&0.into(), &7.into(), &1.into()));
        assert_eq!(again["bad_lines"][1]["line"], 9);
        for arguments in [
            &["verify", "--json"][..],
            &["balance", "1101", "--json"],
            &["balance", "用户一", "--json"],
            &["balance", "nobody", "--json"],
        ] {
            assert_eq!(replayed.json(arguments), setup.json(arguments), "{arguments:?}");
        }
        let payment = |setup: &Setup| {
            let mut record = setup.json(&["payment", "98765432109876543210", "--ledger-only", "--json"]);
            record["credited_at"] = serde_json::Value::Null;
            record
        };
        assert_eq!(payment(&replayed), payment(&setup));
    }
}

#[test]
fn publishing_where_nothing_is_bound_fails_and_says_so() {
    let place = Place::new(Kind::Sqlite);
    let (setup, daemon, client) = ready(&place, "");
    let file = setup.folder.path().join("recorded.jsonl");
    std::fs::write(
        &file,
        "{\"paymentId\":1,\"userId\":2,\"integral\":3}\n{\"body\":{},\"headers\":5}\n{\"body\":{},\"routing_key\":\"nowhere\"}\n",
    )
    .unwrap();
    let output = setup.run(&["publish", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let said = told(&output);
    assert!(said.contains("line 2: not published: headers: must be an object"), "{said}");
    assert!(said.contains("lines 1 to 3 are not all confirmed") && said.contains("unroutable"), "{said}");

    std::fs::write(&file, "{\"body\":{},\"headers\":5}\n{\"paymentId\":1,\"userId\":2,\"integral\":3}\n").unwrap();
    let account = setup.json(&["publish", file.to_str().unwrap(), "--json"]);
    assert_eq!((&account["published"], &account["bad_lines"][0]["line"]), (&1.into(), &1.into()));
    daemon.stop();
    drop(client);
}
