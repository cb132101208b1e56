//! Check messages: scheduled after the commit, worked on entry by entry, and out of producers' reach.

use crate::{
    compensation::{
        assert_right, body, checks, is, publish, setup, setup_at, start, state, wait_for_checks, wait_for_state,
    },
    notifications::{wait_for_queue, wait_for_settled},
    support::{
        amqp::{CHECKS, Client, check_entry, check_message, text},
        daemon::{Daemon, Setup, Signal, told},
        eventually,
        gateway::{Gateway, Reply},
        ledger::{Kind, Place},
        payments::Payments,
        proxy::{Network, Proxy},
        rabbit::{self, Rabbit},
        unique,
    },
};
use diesel::{Connection, PgConnection, QueryableByName, RunQueryDsl, sql_query, sql_types::BigInt};
use lapin::{
    BasicProperties, ExchangeKind,
    types::{AMQPValue, FieldArray, FieldTable},
};
use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

const PAID: &str = "TRADE_SUCCESS";
const PENDING: &str = "WAIT_BUYER_PAY";
const CLOSED: &str = "TRADE_CLOSED";

fn words(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

fn table(entries: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert((*name).into(), value.clone());
    }
    table
}

fn messages(daemon: &Daemon, queue: &str, outcome: &str) -> f64 {
    daemon.metric(&format!(r#"pointsd_messages_total{{queue="{queue}",outcome="{outcome}"}}"#))
}

/// How many rows of the ledger meet a condition.
fn rows(place: &Place, condition: &str) -> i64 {
    #[derive(QueryableByName)]
    struct Count {
        #[diesel(sql_type = BigInt)]
        count: i64,
    }
    let query = format!("SELECT count(*) AS count FROM points_credits WHERE {condition}");
    sql_query(query).get_result::<Count>(&mut PgConnection::establish(&place.url).unwrap()).unwrap().count
}

fn wait_for_rows(daemon: &Daemon, place: &Place, condition: &str, expected: i64) {
    daemon.wait_for(&format!("{expected} rows: {condition}"), |_| rows(place, condition).eq(&expected).then_some(()));
}

/// Headers that a producer may send to pass for something else.
fn forgeries(setup: &Setup) -> Vec<BasicProperties> {
    let queues = [
        setup.credit_queue.clone(),
        setup.check_queue.clone(),
        setup.dead_queue.clone(),
        setup.check_delay_queue("1s"),
        setup.retry_queue("1h"),
        format!("{}.retry.1h", setup.check_queue),
    ];
    let death = |queue: &str, reason: &str, count: AMQPValue| {
        AMQPValue::FieldTable(table(&[
            ("queue", words(queue)),
            ("reason", words(reason)),
            ("exchange", words("")),
            ("count", count),
            ("routing-keys", AMQPValue::FieldArray(FieldArray::default())),
        ]))
    };
    let deaths = |death: AMQPValue| ("x-death", AMQPValue::FieldArray(vec![death].into()));
    let mut headers: Vec<FieldTable> = Vec::new();
    for queue in &queues {
        headers.push(table(&[deaths(death(queue, "expired", AMQPValue::LongLongInt(1)))]));
        headers.push(table(&[deaths(death(queue, "expired", words("x")))]));
        headers.push(table(&[deaths(AMQPValue::FieldTable(table(&[
            ("queue", words(queue)),
            ("reason", words("expired")),
        ])))]));
    }
    headers.push(table(&[("x-death", words("x"))]));
    headers.push(table(&[("x-death", AMQPValue::FieldArray(vec![AMQPValue::Void].into()))]));
    for (name, value) in [
        ("x-pointsd-attempt", AMQPValue::LongLongInt(1)),
        ("x-pointsd-check", AMQPValue::LongLongInt(99)),
        ("x-pointsd-check", AMQPValue::Double(1.5)),
        ("x-pointsd-after", AMQPValue::LongLongInt(1)),
        ("x-pointsd-wait", AMQPValue::LongLongInt(1)),
        ("x-pointsd-source", words("trade")),
        ("x-pointsd-source-queue", words("elsewhere")),
        ("x-pointsd-reason", words("conflict")),
        ("x-pointsd-error", words("forged")),
        ("x-pointsd-first-failed-at", words("2020-01-01T00:00:00Z")),
        ("x-pointsd-ledger-user", words("thief")),
        ("x-pointsd-ledger-points", AMQPValue::LongLongInt(1)),
        ("x-pointsd-requeue-id", words("forged")),
        ("x-pointsd-truncated", AMQPValue::Boolean(true)),
        ("x-delivery-count", AMQPValue::LongLongInt(999)),
        ("x-acquired-count", AMQPValue::LongLongInt(999)),
        ("x-first-death-queue", words(&setup.check_queue)),
        ("CC", AMQPValue::FieldArray(vec![words(&setup.check_queue)].into())),
        ("BCC", AMQPValue::FieldArray(vec![words(&setup.dead_queue)].into())),
    ] {
        headers.push(table(&[(name, value)]));
    }
    let mut properties: Vec<BasicProperties> = headers
        .into_iter()
        .map(|headers| BasicProperties::default().with_delivery_mode(2).with_headers(headers))
        .collect();
    properties.push(BasicProperties::default().with_delivery_mode(2).with_content_type(CHECKS.into()));
    assert!(properties.len() >= 38, "{}", properties.len());
    properties
}

/// Points messages and notifications of paid and of closed payments, forty of each forgery: the paid ones are credited and
/// verified, the closed ones are not, also after the broker was restarted.
fn forged_headers_change_nothing(queue_type: &str) {
    const EACH: u64 = 40;
    let mut rabbit = Rabbit::start(None);
    let (place, payments, name) = (Place::new(Kind::Postgres), Payments::new(), unique("forged"));
    payments.execute("ALTER TABLE shop.payments ADD points bigint DEFAULT 10");
    let settings = format!(
        "{}user_column = \"buyer\"\npoints_column = \"points\"\n[[source]]\nname = \"trade\"\nexchange = \"{name}\"\n\
         routing_key = \"k\"\nqueue = \"{name}.q\"\nqueue_type = {queue_type:?}\nformat = \"payment_id\"\n",
        payments.settings()
    );
    let setup = setup_at(&rabbit.url(), &place, "sql", &settings, "1s", r#"["1s", "1s"]"#);
    let forgeries = forgeries(&setup);
    let kinds = forgeries.len() as u64;
    let start = || {
        let daemon = setup.start_with(|command| {
            command.env("POINTSD_BROKER__QUEUE_TYPE", queue_type).env("POINTSD_COMPENSATION__BRAKE_AFTER", "1000000");
        });
        daemon.wait_ready();
        wait_for_queue(&daemon, &format!("{name}.q"));
        daemon
    };
    // Even payments are paid, odd ones closed; the first half comes by points messages, the other one by notifications.
    let all = kinds * EACH * 2;
    let rows_of = |ids: std::ops::Range<u64>| -> Vec<(u64, &str)> {
        ids.map(|id| (id, if id % 2 == 0 { PAID } else { CLOSED })).collect()
    };
    payments.set_all(&rows_of(0..all));
    let daemon = start();
    let version = rabbit.ctl(&["version"]);
    if version.trim().starts_with("3.") {
        daemon.wait_for("it says whom the broker trusts", |daemon| {
            daemon.log().contains("trusts the x-death header of a client").then_some(())
        });
    } else {
        assert!(!daemon.log().contains("trusts the x-death"), "{version}");
    }
    let publish = |client: &Client, round: u64| {
        for (kind, properties) in (0..).zip(&forgeries) {
            let ids = move |half: u64| {
                let begin = half * kinds * EACH + kind * EACH + round * EACH / 2;
                begin..begin + EACH / 2
            };
            client.publish(&setup.exchange, &setup.key, ids(0).map(|id| (body(id, "u", 10), properties.clone())));
            client.publish(&name, "k", ids(1).map(|id| (id.to_string().into_bytes(), properties.clone())));
        }
    };
    // Half of each before the broker is restarted, with checks in its delay queues, and half after that.
    publish(&Client::connect(&rabbit.url()), 0);
    rabbit.stop();
    rabbit.boot();
    daemon.wait_ready();
    wait_for_queue(&daemon, &format!("{name}.q"));
    let client = Client::connect(&rabbit.url());
    publish(&client, 1);
    wait_for_rows(&daemon, &place, "state = 'credited' AND verified_at IS NOT NULL", i64::try_from(all / 2).unwrap());
    // A closed payment whose notification comes before anything was credited gets no row.
    wait_for_rows(&daemon, &place, "state = 'reversed'", i64::try_from(all / 4).unwrap());
    daemon.wait_for("nothing waits", |daemon| {
        let waiting = [&setup.credit_queue, &setup.check_queue, &setup.check_delay_queue("1s"), &format!("{name}.q")]
            .map(|queue| client.ready(queue).unwrap());
        let flight = ["credit", "check", "trade"]
            .map(|queue| daemon.metric(&format!(r#"pointsd_in_flight{{queue="{queue}"}}"#)));
        (waiting == [0; 4] && flight == [0.0; 3]).then_some(())
    });
    assert_eq!(rows(&place, "true"), i64::try_from(all * 3 / 4).unwrap());
    assert_eq!(client.ready(&setup.dead_queue), Some(0), "{}", daemon.log());
    assert_right(&setup);

    // What is parked says what the daemon knows, and goes back to where it came from.
    let forged = BasicProperties::default().with_headers(table(&[
        ("x-pointsd-source-queue", words("elsewhere")),
        ("x-pointsd-reason", words("conflict")),
        ("x-pointsd-requeue-id", words("forged")),
        ("x-pointsd-source", words("trade")),
        ("trace", words("t")),
    ]));
    client.publish(&setup.exchange, &setup.key, [(b"{}".to_vec(), forged)]);
    eventually("it is parked", || client.ready(&setup.dead_queue)?.eq(&1).then_some(()));
    let list = setup.json(&["dead", "list", "--each", "--json"]);
    let parked = &list["each"][0];
    assert_eq!((&parked["reason"], &parked["requeue_id"]), (&"malformed".into(), &serde_json::Value::Null), "{list}");
    assert_eq!(parked["source_queue"], setup.credit_queue.as_str());
    let requeue = setup.run(&["dead", "requeue", "--all", "--canary", "0", "--keep-going"]);
    assert!(told(&requeue).contains("sent 1 of 1"), "{}", told(&requeue));
    daemon.wait_for("it is parked again", |daemon| messages(daemon, "credit", "malformed").eq(&2.0).then_some(()));
    eventually("the copy is there", || client.ready(&setup.dead_queue)?.eq(&1).then_some(()));
    let parked = client.take(&setup.dead_queue).unwrap();
    assert_eq!(text(&parked, "trace").as_deref(), Some("t"), "foreign headers are kept");
    daemon.stop();
}

#[test]
fn forged_headers_change_nothing_on_quorum_queues() {
    forged_headers_change_nothing("quorum");
}

#[test]
fn forged_headers_change_nothing_on_classic_queues() {
    forged_headers_change_nothing("classic");
}

#[test]
fn a_message_at_its_delivery_limit_keeps_none_of_a_producers_headers() {
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "delivery_limit = 1");
    let client = Client::connect(&rabbit::shared().url());
    assert!(setup.run(&["topology", "declare"]).status.success());
    let forged = BasicProperties::default().with_headers(table(&[
        ("x-pointsd-source-queue", words("elsewhere")),
        ("x-pointsd-requeue-id", words("forged")),
    ]));
    client.publish(&setup.exchange, &setup.key, [(body(1, "u", 10), forged)]);
    eventually("the broker has moved it", || {
        client.take_and_return(&setup.credit_queue);
        client.ready(&setup.dead_queue)?.eq(&1).then_some(())
    });
    let list = setup.json(&["dead", "list", "--each", "--json"]);
    let parked = &list["each"][0];
    assert_eq!((&parked["reason"], &parked["requeue_id"]), (&"delivery_limit".into(), &serde_json::Value::Null));
    assert_eq!(parked["source_queue"], setup.credit_queue.as_str(), "{list}");
}

#[test]
fn each_entry_of_a_check_message_ends_as_if_it_had_come_alone() {
    let (place, payments) = (Place::new(Kind::Postgres), Payments::new());
    let setup = setup(&place, "sql", &payments.settings(), "1h", r#"["2h"]"#);
    payments.set_all(&(0..10_000).map(|id| (id, if id % 5 == 0 { PENDING } else { PAID })).collect::<Vec<_>>());
    let daemon = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    let publish = |message| client.publish("", &setup.check_queue, [message]);
    // Ten thousand entries, in parts.
    let entries: Vec<_> = (0..10_000).map(|id| check_entry(&id.to_string(), &format!("u{}", id % 50), 1)).collect();
    publish(check_message(&entries, 0));
    wait_for_rows(&daemon, &place, "verified_at IS NOT NULL", 8_000);
    let mut again = Vec::new();
    eventually("what is pending is checked again", || {
        again.extend(client.drain_checks(&setup.check_delay_queue("2h")));
        again.len().ge(&2_000).then_some(())
    });
    assert!(again.len() == 2_000 && again.iter().all(|(id, done)| id.parse::<u64>().unwrap() % 5 == 0 && *done == 1));
    // What a check has credited is confirmed.
    let mut confirmed = Vec::new();
    eventually("what was credited is confirmed", || {
        confirmed.extend(client.drain_checks(&setup.check_delay_queue("1h")));
        confirmed.len().ge(&8_000).then_some(())
    });
    assert!(confirmed.iter().all(|(_, done)| *done == 1));

    // A bad entry among good ones, an unknown version, none, not JSON, and one that is too large.
    let bad = serde_json::json!({"payment_id": "20001", "user_id": "u", "points": -1});
    payments.set_all(&[(20_000, PAID), (20_002, PAID)]);
    publish(check_message(&[check_entry("20000", "u", 1), bad, check_entry("20002", "u", 1)], 0));
    let properties = check_message(&[], 0).1;
    let large = format!(r#"{{"version": 1, "checks": [{{"payment_id": "{}"}}]}}"#, "x".repeat(20 * 1024 * 1024));
    for body in [r#"{"version": 2, "checks": []}"#, r#"{"version": 1, "checks": []}"#, "not json", large.as_str()] {
        publish((body.as_bytes().to_vec(), properties.clone()));
    }
    for payment in [20_000, 20_002] {
        wait_for_state(&setup, &daemon, payment, &is("credited", true));
    }
    eventually("the bad ones are parked", || client.ready(&setup.dead_queue)?.eq(&5).then_some(()));
    let parked = client.drain(&setup.dead_queue);
    let errors: BTreeSet<String> = parked.iter().map(|it| text(it, "x-pointsd-error").unwrap()).collect();
    for part in ["points is out of range", "version is 2", "checks is empty", "expected ident", "at most 16777216"] {
        assert!(errors.iter().any(|error| error.contains(part)), "{part}: {errors:?}");
    }
    let alone: Vec<_> = parked.iter().filter(|it| it.delivery.data.starts_with(b"{\"version\":1")).collect();
    assert_eq!(alone.len(), 1, "the bad entry alone");
    assert!(String::from_utf8_lossy(&alone[0].delivery.data).contains("20001"));
    assert!(parked.iter().all(|it| text(it, "x-pointsd-reason").as_deref() == Some("malformed")));
    assert_eq!(messages(&daemon, "check", "malformed"), 5.0);
    assert_right(&setup);
    daemon.stop();
}

/// The articles' topology: two queues on one key, one for the credits and one for the checks, declared by another program.
#[test]
fn a_check_queue_that_another_program_has_bound_to_the_producers_key_works() {
    let rabbit = rabbit::shared();
    let client = Client::connect(&rabbit.url());
    let (place, payments, name) = (Place::new(Kind::Postgres), Payments::new(), unique("articles"));
    let (exchange, key) = (format!("{name}.integral_exchange_name"), format!("{name}.integralRoutingKey"));
    let more = format!(
        "declare = false\nqueue_type = \"classic\"\n[compensation]\nfirst = \"1s\"\ndelays = [\"1s\"]\n[pay_status]\n\
         source = \"sql\"\n{}",
        payments.settings()
    );
    let mut setup = Setup::new(&rabbit.url(), &place.url, &more);
    let text = std::fs::read_to_string(setup.config()).unwrap();
    let (credit_queue, check_queue) = (format!("{name}.integral_queue"), format!("{name}.integral_create_queue"));
    let text = text
        .replace(&format!("exchange = {:?}", setup.exchange), &format!("exchange = {exchange:?}"))
        .replace(&format!("routing_key = {:?}", setup.key), &format!("routing_key = {key:?}"))
        .replace(&format!("credit_queue = {:?}", setup.credit_queue), &format!("credit_queue = {credit_queue:?}"))
        .replace(&format!("check_queue = {:?}", setup.check_queue), &format!("check_queue = {check_queue:?}"));
    std::fs::write(setup.config(), text).unwrap();
    (setup.exchange, setup.key) = (exchange.clone(), key.clone());
    (setup.credit_queue, setup.check_queue) = (credit_queue.clone(), check_queue.clone());
    client.declare_exchange(&exchange, ExchangeKind::Direct);
    for queue in [&credit_queue, &check_queue] {
        client.declare_queue(queue, &[]);
        client.bind(queue, &exchange, &key);
    }
    // The rest is ours, and declared beforehand.
    assert!(setup.run(&["topology", "declare"]).status.success());
    payments.set_all(&[(1, PAID), (2, CLOSED), (3, PENDING)]);
    let daemon = start(&setup);
    publish(&client, &setup, 1..=3);
    client.publish(&exchange, &key, [(b"garbage".to_vec(), BasicProperties::default())]);
    wait_for_state(&setup, &daemon, 1, &is("credited", true));
    for payment in [2, 3] {
        wait_for_state(&setup, &daemon, payment, &is("reversed", false));
    }
    daemon.wait_for("what cannot be read is logged", |daemon| {
        daemon.log().contains("malformed message in the check queue acknowledged").then_some(())
    });
    // Parked once, by its own queue.
    eventually("it is parked", || client.ready(&setup.dead_queue)?.eq(&1).then_some(()));
    // Twice each: by the schedule, and by the binding of the check queue, which begins with the first delay.
    wait_for_checks(&daemon, "paid", "verify", 2.0);
    assert_eq!(messages(&daemon, "check", "malformed"), 1.0);
    assert_eq!(client.ready(&setup.dead_queue), Some(1));
    assert_right(&setup);
    daemon.stop();
}

#[test]
fn a_daemon_that_dies_between_the_commit_and_the_check_message_schedules_the_check_all_the_same() {
    let rabbit = Rabbit::start(None);
    let (place, payments) = (Place::new(Kind::Postgres), Payments::new());
    let proxy = Proxy::to(rabbit.port);
    let proxied = format!("amqp://guest:guest@127.0.0.1:{}/%2f", proxy.port);
    let setup = setup_at(&proxied, &place, "sql", &payments.settings(), "1s", r#"["1h"]"#);
    let client = Client::connect(&rabbit.url());
    payments.set_all(&(0..400).map(|id| (id, if id % 4 == 0 { CLOSED } else { PAID })).collect::<Vec<_>>());
    let mut daemon = start(&setup);
    for round in 0..4_u64 {
        let ids = round * 100..(round + 1) * 100;
        // Delivered, and not committed yet.
        let lock = crate::recovery::hold_the_ledger(&place);
        publish(&client, &setup, ids);
        daemon.wait_for("they are in flight", |daemon| {
            daemon.metric(r#"pointsd_in_flight{queue="credit"}"#).gt(&0.0).then_some(())
        });
        // Nothing gets through to the broker any more: committed, and no check message is confirmed.
        proxy.set(Network::Stalled);
        drop(lock);
        let begun = Instant::now();
        while rows(&place, "true") <= i64::try_from(round * 100).unwrap() {
            assert!(begun.elapsed() < Duration::from_secs(20), "some are committed");
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(500));
        daemon.kill();
        proxy.set(Network::Cut);
        // None of them was acknowledged.
        eventually("the messages are back", || client.ready(&setup.credit_queue)?.eq(&100).then_some(()));
        proxy.set(Network::Up);
        daemon = start(&setup);
        daemon.wait_for("they are settled", |daemon| {
            let settled = messages(daemon, "credit", "credited") + messages(daemon, "credit", "duplicate");
            settled.eq(&100.0).then_some(())
        });
    }
    wait_for_rows(&daemon, &place, "verified_at IS NOT NULL AND state = 'credited'", 300);
    wait_for_rows(&daemon, &place, "state = 'reversed'", 100);
    assert_right(&setup);
    assert_eq!(client.ready(&setup.dead_queue), Some(0));
    daemon.stop();
}

/// A message of 500 of which some are pending, some fail alone and some are parked, while everything that it needs fails
/// again and again: it ends as the table says, none is left unchecked, and no copy is made twice.
#[test]
fn outages_in_the_middle_of_a_check_message_leave_none_unchecked_and_make_no_copy_twice() {
    let (place, payments) = (Place::new(Kind::Postgres), Payments::new());
    place.open().migrate().unwrap();
    place.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
           RAISE EXCEPTION 'not now' USING ERRCODE = '40001'; END $$;
         CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON points_credits FOR EACH ROW \
           WHEN (NEW.payment_id LIKE '9__' AND NEW.verified_at IS NOT NULL) EXECUTE FUNCTION refuse()",
    );
    let setup = setup(&place, "sql", &payments.settings(), "1h", r#"["2h"]"#);
    let status = |id: u64| match id {
        900..=909 | 100..=299 => Some(PAID),
        300..=399 => Some(CLOSED),
        400..=499 => Some(PENDING),
        600..=609 => Some("ODD"),
        _ => None,
    };
    let ids: Vec<u64> = (100..500).chain(600..610).chain(700..780).chain(900..910).collect();
    assert_eq!(ids.len(), 500);
    payments.set_all(&ids.iter().filter_map(|id| Some((*id, status(*id)?))).collect::<Vec<_>>());
    let daemon = setup.start_with(|command| {
        command.env("POINTSD_COMPENSATION__BRAKE_AFTER", "40").env("POINTSD_LEDGER__TIMEOUT", "1s");
    });
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    let entries: Vec<_> = ids.iter().map(|id| check_entry(&id.to_string(), "u", 1)).collect();
    // At the last check: what is pending is expired.
    let lock = payments.hold();
    client.publish("", &setup.check_queue, [check_message(&entries, 1)]);
    daemon.wait_for("the source is down", |daemon| daemon.get("/readyz")?.1.contains("pay_status").then_some(()));
    let ledger = crate::recovery::hold_the_ledger(&place);
    drop(lock);
    daemon.wait_for("the ledger is down", |daemon| daemon.log().contains("paused dependency=\"ledger\"").then_some(()));
    let lock = payments.hold();
    drop(ledger);
    daemon.wait_for("the source is down again", |daemon| {
        daemon.log().matches("paused dependency=\"pay_status\"").count().ge(&2).then_some(())
    });
    assert_eq!(client.ready(&setup.dead_queue), Some(0), "nothing was published");
    drop(lock);
    // The brake engages in the middle of the message, again and again.
    let mut released = 0;
    daemon.wait_for("everything is decided", |daemon| {
        if daemon.log().matches("reversals in a row").count() > released {
            released += 1;
            assert!(client.ready(&setup.dead_queue) == Some(0) && released < 20, "nothing was published");
            daemon.signal(Signal::HUP);
        }
        client.ready(&setup.dead_queue)?.ge(&10).then_some(())
    });
    assert!(released >= 3, "the brake engaged {released} times");
    daemon.wait_for("it is settled", |daemon| {
        daemon.metric(r#"pointsd_in_flight{queue="check"}"#).eq(&0.0).then_some(())
    });
    daemon.stop();
    assert_eq!(rows(&place, "state = 'credited' AND verified_at IS NOT NULL"), 200);
    assert_eq!(rows(&place, "state = 'reversed'"), 100 + 100 + 80, "closed, pending, unknown");
    assert_right(&setup);
    assert_eq!(client.drain(&setup.dead_queue).len(), 10, "what is in no list");
    // Copies: the retries in one message, what was credited or expired once each, and nothing else.
    let retries = format!("{}.retry.1h", setup.check_queue);
    assert_eq!(client.ready(&retries), Some(1));
    let retried = client.drain_checks(&retries).into_iter();
    let mut retried: Vec<u64> = retried.map(|(id, _)| id.parse::<u64>().unwrap()).collect();
    retried.sort_unstable();
    assert_eq!(retried, (900..910).collect::<Vec<u64>>());
    let confirmations = client.drain_checks(&setup.check_delay_queue("2h"));
    let distinct: BTreeSet<_> = confirmations.iter().map(|(id, _)| id.parse::<u64>().unwrap()).collect();
    assert_eq!((confirmations.len(), distinct.len()), (180, 180), "each that was expired is confirmed once");
    assert!(confirmations.iter().all(|(_, done)| *done == 2));
    let credited = client.drain_checks(&setup.check_delay_queue("1h"));
    assert!(credited.len() <= 200 && credited.iter().all(|(_, done)| *done == 2), "{}", credited.len());
    assert_eq!(client.ready(&setup.check_queue), Some(0));
}

#[test]
fn kills_in_the_middle_of_a_check_message_repeat_at_most_that_messages_copies() {
    let rabbit = Rabbit::start(None);
    let (place, payments) = (Place::new(Kind::Postgres), Payments::new());
    let proxy = Proxy::to(rabbit.port);
    let proxied = format!("amqp://guest:guest@127.0.0.1:{}/%2f", proxy.port);
    let setup = setup_at(&proxied, &place, "sql", &payments.settings(), "1h", r#"["2h"]"#);
    payments.set_all(&(0..500).map(|id| (id, if id < 250 { PENDING } else { PAID })).collect::<Vec<_>>());
    let client = Client::connect(&rabbit.url());
    let mut daemon = start(&setup);
    let entries: Vec<_> = (0..500).map(|id: u64| check_entry(&id.to_string(), "u", 1)).collect();
    let lock = payments.hold();
    client.publish("", &setup.check_queue, [check_message(&entries, 0)]);
    let mut lock = Some(lock);
    for kill in 0..3 {
        daemon.wait_for("the message is in hand", |daemon| {
            daemon.metric(r#"pointsd_in_flight{queue="check"}"#).eq(&1.0).then_some(())
        });
        if kill == 2 {
            // Everything is decided; neither copies nor the acknowledgement get through.
            proxy.set(Network::Stalled);
            drop(lock.take());
            let begun = Instant::now();
            while rows(&place, "verified_at IS NOT NULL") < 250 {
                assert!(begun.elapsed() < Duration::from_secs(20));
                std::thread::sleep(Duration::from_millis(20));
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        daemon.kill();
        proxy.set(Network::Cut);
        eventually("it is back", || client.ready(&setup.check_queue)?.eq(&1).then_some(()));
        proxy.set(Network::Up);
        daemon = start(&setup);
    }
    daemon.wait_for("it is settled", |daemon| messages(daemon, "check", "checked").eq(&500.0).then_some(()));
    daemon.stop();
    let pending = client.drain_checks(&setup.check_delay_queue("2h"));
    let distinct: BTreeSet<&String> = pending.iter().map(|(id, _)| id).collect();
    assert_eq!(distinct.len(), 250, "none is left unchecked");
    assert!(pending.len() <= 500, "{} copies", pending.len());
    assert_eq!((client.ready(&setup.check_queue), client.ready(&setup.dead_queue)), (Some(0), Some(0)));
    assert_right(&setup);
}

/// Answers of five seconds each: more than there is time for in one turn.
#[test]
fn a_source_that_answers_one_look_up_in_five_seconds_gets_through_five_hundred_payments() {
    let rabbit = Rabbit::start(None);
    // What is held for longer than this is taken back, with an error that ends the channel.
    rabbit.ctl(&["eval", "application:set_env(rabbit, consumer_timeout, 150000)."]);
    let place = Place::new(Kind::Postgres);
    let gateway = Gateway::start(|_, _| Reply { delay: Duration::from_secs(5), ..Reply::trade(PAID) });
    let settings = gateway.settings().replace("timeout = \"1s\"", "timeout = \"10s\"\nconcurrency = 32");
    let setup = setup_at(&rabbit.url(), &place, "http", &settings, "200ms", r#"["1h"]"#);
    let daemon = start(&setup);
    let client = Client::connect(&rabbit.url());
    publish(&client, &setup, 0..500);
    let begun = Instant::now();
    while rows(&place, "verified_at IS NOT NULL") < 500 {
        assert!(begun.elapsed() < Duration::from_secs(240), "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(begun.elapsed() > Duration::from_secs(60), "it took more than one turn");
    daemon.wait_for("all are settled", |daemon| messages(daemon, "check", "checked").eq(&500.0).then_some(()));
    assert_eq!(daemon.log().matches("paused").count(), 0, "{}", daemon.log());
    for queue in [&setup.check_queue, &setup.dead_queue, &setup.check_delay_queue("1h")] {
        assert_eq!(client.ready(queue), Some(0), "{queue}");
    }
    assert_right(&setup);
    daemon.stop();
}

#[test]
fn a_gateway_that_admits_twenty_requests_a_second_is_not_asked_for_much_more() {
    let place = Place::new(Kind::Postgres);
    let gateway = Gateway::start(|_, _| Reply::status(500));
    let admission = gateway.admit(20, |_| Reply::trade(PAID));
    let setup = setup(&place, "http", &gateway.settings(), "200ms", r#"["1h"]"#);
    let daemon = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    publish(&client, &setup, 0..600);
    wait_for_rows(&daemon, &place, "verified_at IS NOT NULL", 600);
    let refused = admission.lock().unwrap().refused;
    assert!(refused < 200, "{refused} refusals");
    assert_eq!(client.ready(&setup.dead_queue), Some(0));
    assert_eq!(client.ready(&format!("{}.retry.1h", setup.check_queue)), Some(0), "no attempt was spent");
    daemon.stop();
}

#[test]
fn ids_that_always_fail_at_the_head_of_the_queue_keep_no_other_from_being_asked_also_after_a_restart() {
    let place = Place::new(Kind::Postgres);
    let gateway =
        Gateway::start(
            |id, _| if id.parse::<u64>().unwrap_or(0) < 70 { Reply::status(500) } else { Reply::trade(PAID) },
        );
    let setup = setup(&place, "http", &gateway.settings(), "1h", r#"["1h"]"#);
    let client = Client::connect(&rabbit::shared().url());
    assert!(setup.run(&["topology", "declare"]).status.success());
    for restart in 1..=2_u64 {
        // One message each: at the head of the queue those that fail.
        let ids = (0..70).chain(restart * 100..restart * 100 + 30);
        client.publish(
            "",
            &setup.check_queue,
            ids.map(|id: u64| check_message(&[check_entry(&format!("{id:03}"), "u", 1)], 0)),
        );
        let daemon = start(&setup);
        wait_for_rows(&daemon, &place, "verified_at IS NOT NULL", i64::try_from(restart * 30).unwrap());
        let mut retried = 0;
        daemon.wait_for("those that fail take their retry step", |_| {
            retried += client.drain_checks(&format!("{}.retry.1h", setup.check_queue)).len();
            retried.eq(&70).then_some(())
        });
        daemon.stop();
    }
}

#[test]
fn a_payment_that_is_closed_while_its_check_waits_for_a_locked_row_is_not_reinstated() {
    let (place, payments, name) = (Place::new(Kind::Postgres), Payments::new(), unique("race"));
    payments.execute("ALTER TABLE shop.payments ADD points bigint DEFAULT 10");
    let settings = format!(
        "{}user_column = \"buyer\"\npoints_column = \"points\"\n[[source]]\nname = \"trade\"\nexchange = \"{name}\"\n\
         routing_key = \"k\"\nqueue = \"{name}.q\"\nformat = \"payment_id\"\n",
        payments.settings()
    );
    let setup = setup(&place, "sql", &settings, "2s", r#"["2s", "1h"]"#);
    payments.set(1, PAID);
    let daemon = start(&setup);
    wait_for_queue(&daemon, &format!("{name}.q"));
    let client = Client::connect(&rabbit::shared().url());
    publish(&client, &setup, [1]);
    daemon.wait_for("it is credited", |_| state(&setup, 1));
    // The check has found it paid, and waits for the row.
    let mut lock = PgConnection::establish(&place.url).unwrap();
    diesel::connection::SimpleConnection::batch_execute(
        &mut lock,
        "BEGIN; SELECT * FROM points_credits WHERE payment_id = '1' FOR UPDATE",
    )
    .unwrap();
    daemon.wait_for("the check is in hand", |daemon| {
        daemon.metric(r#"pointsd_in_flight{queue="check"}"#).eq(&1.0).then_some(())
    });
    std::thread::sleep(Duration::from_secs(1));
    // Meanwhile it is closed, and its notification comes.
    payments.set(1, CLOSED);
    client.publish(&name, "k", [(b"1".to_vec(), BasicProperties::default())]);
    std::thread::sleep(Duration::from_secs(2));
    drop(lock);
    wait_for_settled(&daemon, "trade", "checked", 1.0);
    daemon.wait_for("all is settled", |daemon| {
        let flight = ["check", "trade"].map(|queue| daemon.metric(&format!(r#"pointsd_in_flight{{queue="{queue}"}}"#)));
        (flight == [0.0; 2]).then_some(())
    });
    daemon.wait_for("it is reversed", |_| state(&setup, 1)?.0.eq("reversed").then_some(()));
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(state(&setup, 1).unwrap().0, "reversed");
    assert_eq!(checks(&daemon, "paid", "reinstate"), 0.0);
    assert_right(&setup);
    daemon.stop();
}

#[test]
fn a_finding_does_not_wait_for_one_id_that_is_slow_at_the_gateway() {
    let (place, payments) = (Place::new(Kind::Postgres), Payments::new());
    let gateway = Gateway::start(|id, _| match id {
        "2" => Reply { delay: Duration::from_secs(6), ..Reply::trade(PAID) },
        _ => Reply::trade(PAID),
    });
    let settings = payments.settings() + &gateway.settings().replace("timeout = \"1s\"", "timeout = \"10s\"");
    let setup = setup(&place, "sql+http", &settings, "1h", r#"["1h"]"#);
    payments.set_all(&[(1, PAID), (2, PENDING), (3, PENDING)]);
    let daemon = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    let entries: Vec<_> = [1, 2, 3].iter().map(|id: &u64| check_entry(&id.to_string(), "u", 1)).collect();
    let begun = Instant::now();
    client.publish("", &setup.check_queue, [check_message(&entries, 0)]);
    for payment in [1, 3] {
        wait_for_state(&setup, &daemon, payment, &is("credited", true));
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(state(&setup, 2), None);
    // Before the message is settled, one of them is closed: what was found of it is in the ledger already.
    payments.set(1, CLOSED);
    wait_for_state(&setup, &daemon, 2, &is("credited", true));
    let mut confirmed = Vec::new();
    eventually("each is confirmed", || {
        confirmed.extend(client.drain_checks(&setup.check_delay_queue("1h")));
        confirmed.len().eq(&3).then_some(())
    });
    daemon.stop();
}

#[test]
fn a_credit_on_arrival_is_looked_up_once_more_after_its_commit() {
    // A trigger closes the payment in the moment in which it is credited.
    let (place, payments, name) = (Place::new(Kind::Postgres), Payments::new(), unique("arrival"));
    place.open().migrate().unwrap();
    let shop = "shop_in_ledger";
    place.execute(&format!(
        "CREATE TABLE {shop} (id bigint PRIMARY KEY, status text, buyer text, points bigint);
         INSERT INTO {shop} VALUES (1, '{PAID}', 'u', 10), (2, '{PAID}', 'u', 10);
         CREATE FUNCTION close() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
           UPDATE {shop} SET status = '{CLOSED}' WHERE id::text = NEW.payment_id AND id = 1; RETURN NEW; END $$;
         CREATE TRIGGER close AFTER INSERT ON points_credits FOR EACH ROW EXECUTE FUNCTION close()"
    ));
    let settings = format!(
        "[pay_status.sql]\ntable = \"{shop}\"\nid_column = \"id\"\nstatus_column = \"status\"\nuser_column = \"buyer\"\n\
         points_column = \"points\"\npaid = [{PAID:?}]\npending = [{PENDING:?}]\nclosed = [{CLOSED:?}]\n\
         [[source]]\nname = \"trade\"\nexchange = \"{name}\"\nrouting_key = \"k\"\nqueue = \"{name}.q\"\nformat = \"payment_id\"\n"
    );
    drop(payments);
    let setup = setup(&place, "sql", &settings, "1h", r#"["1h"]"#);
    let daemon = start(&setup);
    wait_for_queue(&daemon, &format!("{name}.q"));
    let client = Client::connect(&rabbit::shared().url());
    client.publish(&name, "k", [b"1", b"2"].map(|id| (id.to_vec(), BasicProperties::default())));
    wait_for_state(&setup, &daemon, 1, &is("reversed", true));
    wait_for_state(&setup, &daemon, 2, &is("credited", true));
    daemon.wait_for("both are settled", |daemon| {
        daemon.metric(r#"pointsd_in_flight{queue="trade"}"#).eq(&0.0).then_some(())
    });
    assert_eq!(client.ready(&setup.check_delay_queue("1h")), Some(0), "no check is needed");
    assert_right(&setup);
    daemon.stop();
}

/// One payment asked for by several spellings of its id: only its own record's counts.
#[test]
fn one_payment_is_credited_by_one_spelling_of_its_id_on_every_source_and_ledger() {
    const UUID: &str = "550e8400-e29b-41d4-a716-446655440000";
    let spellings = [
        (UUID, "u1", true),
        ("550E8400-E29B-41D4-A716-446655440000", "u1", false),
        ("{550e8400-e29b-41d4-a716-446655440000}", "u1", false),
        ("550e8400e29b41d4a716446655440000", "u1", false),
    ];
    let numbers = [("7", "u2", true), ("007", "u2", false), ("+7", "u2", false)];
    let gateway = Gateway::start(|_, _| Reply::trade(PAID));
    for kind in [Kind::Sqlite, Kind::Postgres] {
        for (source, id_type, ids) in [
            ("sql", "uuid", &spellings[..]),
            ("sql+http", "uuid", &spellings[..]),
            ("sql", "bigint", &numbers[..]),
            ("sql", "numeric(10, 2)", &numbers[..]),
        ] {
            let (place, payments) = (Place::new(kind), Payments::new());
            let key = if id_type == "uuid" { UUID } else { "7" };
            payments.execute(&format!(
                "CREATE TABLE shop.t (id {id_type} PRIMARY KEY, \"Status\" text); INSERT INTO shop.t VALUES ('{key}', '{PAID}')"
            ));
            let mut settings = payments.settings().replace("shop.payments", "shop.t");
            if source == "sql+http" {
                settings += &gateway.settings();
                settings += "id_pattern = \"[0-9A-Fa-f{}-]+\"\n";
            }
            let setup = setup(&place, source, &settings, "500ms", r#"["500ms"]"#);
            let daemon = start(&setup);
            let client = Client::connect(&rabbit::shared().url());
            let message = |id: &str| {
                let body = serde_json::json!({"paymentId": id, "userId": "u", "integral": 100});
                (body.to_string().into_bytes(), BasicProperties::default())
            };
            client.publish(&setup.exchange, &setup.key, ids.iter().map(|(id, ..)| message(id)));
            for (id, _, counts) in ids {
                daemon.wait_for(&format!("{id} of {id_type} in {kind:?} is checked"), |_| {
                    let story = setup.json(&["payment", id, "--ledger-only", "--json"]);
                    let reason = story["adjustments"][0]["reason"].as_str().unwrap_or_default().to_owned();
                    let ends = if *counts {
                        story["state"] == "credited" && !story["verified_at"].is_null()
                    } else {
                        story["state"] == "reversed" && reason == format!("another spelling of {key}")
                    };
                    ends.then_some(())
                });
            }
            assert_eq!(setup.json(&["balance", "u", "--json"])["balance"], 100, "{id_type}");
            daemon.wait_for("they are counted", |daemon| {
                messages(daemon, "check", "conflict")
                    .ge(&f64::from(u32::try_from(ids.len() - 1).unwrap()))
                    .then_some(())
            });
            assert_eq!(client.ready(&setup.dead_queue), Some(0));
            assert_right(&setup);
            daemon.stop();
        }
    }
}

#[test]
fn an_id_that_a_url_cannot_hold_safely_is_malformed_when_it_is_credited() {
    let place = Place::new(Kind::Sqlite);
    let gateway = Gateway::start(|_, _| Reply::trade(PAID));
    let setup = setup(&place, "http", &gateway.settings(), "200ms", r#"["1h"]"#);
    let daemon = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    let ids = ["P1", "x/../P1", "..", ".", "a\\b", "a%62", "a?b", "a#b", "a;b"];
    client.publish(
        &setup.exchange,
        &setup.key,
        ids.map(|id| {
            let body = serde_json::json!({"paymentId": id, "userId": "u", "integral": 100});
            (body.to_string().into_bytes(), BasicProperties::default())
        }),
    );
    wait_for_checks(&daemon, "paid", "verify", 1.0);
    assert_eq!(messages(&daemon, "credit", "malformed"), 8.0);
    assert_eq!((messages(&daemon, "credit", "credited"), gateway.asked()), (1.0, 1));
    daemon.stop();
}

#[test]
fn a_source_whose_expire_was_replaced_by_mark_paid_while_its_checks_waited_marks_nothing_paid() {
    let (place, payments, name) = (Place::new(Kind::Sqlite), Payments::new(), unique("kind"));
    payments.execute("ALTER TABLE shop.payments ADD points bigint DEFAULT 10");
    let source = |rule: &str| {
        format!(
            "{}user_column = \"buyer\"\npoints_column = \"points\"\n[[source]]\nname = \"orders\"\nexchange = \"{name}\"\n\
             routing_key = \"k\"\nqueue = \"{name}.q\"\nformat = \"payment_id\"\n{rule}\n",
            payments.settings()
        )
    };
    let expire = source("expire = true\nfirst = \"3s\"\ndelays = [\"1h\"]");
    let setup = setup(&place, "sql", &expire, "3s", r#"["1h"]"#);
    payments.set(1, PENDING);
    let daemon = start(&setup);
    wait_for_queue(&daemon, &format!("{name}.q"));
    let client = Client::connect(&rabbit::shared().url());
    client.publish(&name, "k", [(b"1".to_vec(), BasicProperties::default())]);
    wait_for_settled(&daemon, "orders", "checked", 1.0);
    daemon.stop();
    let text = std::fs::read_to_string(setup.config()).unwrap();
    std::fs::write(setup.config(), text.replace(&expire, &source("mark_paid = true"))).unwrap();
    let daemon = start(&setup);
    eventually("its check is parked", || client.ready(&setup.dead_queue)?.eq(&1).then_some(()));
    let list = setup.json(&["dead", "list", "--each", "--json"]);
    let parked = &list["each"][0];
    assert_eq!((&parked["reason"], &parked["payment_id"]), (&"rejected".into(), &"1".into()), "{list}");
    assert!(parked["error"].as_str().unwrap().contains("meant \"created\"; now they mean \"paid\""), "{list}");
    assert_eq!(payments.status(1), PENDING);
    assert_eq!(state(&setup, 1), None);
    daemon.stop();
}

#[test]
fn a_parked_check_message_of_many_is_shown_filtered_exported_and_sent_back() {
    let (place, payments) = (Place::new(Kind::Sqlite), Payments::new());
    let setup = setup(&place, "sql", &payments.settings(), "1h", r#"["1h"]"#);
    payments.set_all(&[(1, PAID), (2, PAID), (3, PAID)]);
    assert!(setup.run(&["topology", "declare"]).status.success());
    assert!(setup.run(&["migrate"]).status.success());
    let client = Client::connect(&rabbit::shared().url());
    // As the broker moves it at a delivery limit.
    let entries: Vec<_> = [1, 2, 3].iter().map(|id: &u64| check_entry(&id.to_string(), "u", 5)).collect();
    let (message, properties) = check_message(&entries, 1);
    let mut headers = properties.headers().clone().unwrap();
    headers.insert(
        "x-death".into(),
        AMQPValue::FieldArray(
            vec![AMQPValue::FieldTable(table(&[
                ("queue", words(&setup.check_queue)),
                ("reason", words("delivery_limit")),
                ("exchange", words("")),
                ("count", AMQPValue::LongLongInt(1)),
            ]))]
            .into(),
        ),
    );
    client.publish("", &setup.dead_queue, [(message, properties.with_headers(headers))]);
    let list = setup.json(&["dead", "list", "--each", "--payment", "2", "--json"]);
    assert_eq!(list["each"][0]["payment_ids"], serde_json::json!(["1", "2", "3"]), "{list}");
    assert_eq!(list["each"][0]["reason"], "delivery_limit");
    assert_eq!(setup.json(&["dead", "list", "--payment", "9", "--json"])["messages"], 0);
    let shown = told(&setup.run(&["dead", "show", "--payment", "3"]));
    assert!(shown.contains("payment 1 and 2 more") && shown.contains("\"checks\""), "{shown}");
    let drop = setup.run(&["dead", "drop", "--payment", "2", "--payment", "3", "--yes"]);
    assert_eq!(drop.status.code(), Some(1), "{}", told(&drop));
    assert!(
        told(&drop).contains("nothing is dropped: these messages are about other payments, too"),
        "{}",
        told(&drop)
    );
    let story = setup.json(&["payment", "3", "--json"]);
    assert_eq!(story["dead_queue"]["messages"][0]["reason"], "delivery_limit", "{story}");
    let export = setup.folder.path().join("dead.jsonl");
    assert!(setup.run(&["dead", "export", export.to_str().unwrap()]).status.success());
    let replayed = setup.run(&["replay", export.to_str().unwrap()]);
    assert!(told(&replayed).contains("is a check message"), "{}", told(&replayed));
    // Sent back it begins anew, in the check queue: checked at once.
    let requeue = setup.run(&["dead", "requeue", "--all", "--canary", "0"]);
    assert!(requeue.status.success(), "{}", told(&requeue));
    let daemon = start(&setup);
    wait_for_checks(&daemon, "paid", "late_credit", 3.0);
    // And so it does when the export is published.
    assert!(setup.run(&["publish", export.to_str().unwrap()]).status.success());
    wait_for_checks(&daemon, "paid", "verify", 3.0);
    assert_right(&setup);
    daemon.stop();
}

#[test]
fn queues_that_are_gone_are_declared_again_or_make_the_daemon_unready() {
    let rabbit = rabbit::shared();
    let (place, payments) = (Place::new(Kind::Sqlite), Payments::new());
    let setup = setup(&place, "sql", &payments.settings(), "1h", r#"["2h"]"#);
    let delete = || Client::connect(&rabbit.url()).delete_queue(&setup.check_delay_queue("2h"));
    let daemon = start(&setup);
    delete();
    let there = || Client::connect(&rabbit.url()).ready(&setup.check_delay_queue("2h"));
    assert_eq!(there(), None);
    daemon.wait_for("it is declared again", |_| there());
    let line = format!("queue {}", setup.check_delay_queue("2h"));
    daemon.wait_for("it is logged", |daemon| {
        daemon.log().lines().any(|log| log.contains("gone from the broker") && log.contains(&line)).then_some(())
    });
    assert_eq!(daemon.log().matches("gone from the broker").count(), 1, "{}", daemon.log());
    assert_eq!(daemon.get("/readyz").unwrap().0, 200);
    daemon.stop();

    let daemon = setup.start_with(|command| {
        command.env("POINTSD_BROKER__DECLARE", "false");
    });
    daemon.wait_ready();
    delete();
    daemon.wait_not_ready(&setup.check_delay_queue("2h"));
    assert_eq!(there(), None);
    assert!(setup.run(&["topology", "declare"]).status.success());
    daemon.wait_ready();
    daemon.stop();
}

/// A consumed queue that is deleted ends its session at once: the next one declares it again, and must say what was lost.
#[test]
fn a_consumed_queue_that_is_deleted_is_declared_again_with_a_warning_that_says_what_was_lost() {
    let rabbit = rabbit::shared();
    let (place, payments) = (Place::new(Kind::Postgres), Payments::new());
    let source = "[[source]]\nname = \"shop\"\nformat = \"credit\"\nqueue = \"QUEUE\"\nexchange = \"EXCHANGE\"\nrouting_key = \"paid\"\n";
    let setup = setup(&place, "sql", &payments.settings(), "1h", r#"["2h"]"#);
    let (notified, exchange) = (format!("{}.notified", setup.credit_queue), format!("{}.notify", setup.exchange));
    let text = std::fs::read_to_string(setup.config()).unwrap();
    let source = source.replace("QUEUE", &notified).replace("EXCHANGE", &exchange);
    std::fs::write(setup.config(), format!("{text}\n{source}")).unwrap();
    let daemon = start(&setup);
    let client = Client::connect(&rabbit.url());
    // Twenty credits whose checks are lost, before any check is due.
    payments.set_all(&(1..=20).map(|id| (id, PAID)).collect::<Vec<_>>());
    publish(&client, &setup, 1..=20);
    daemon.wait_for("they are credited", |daemon| messages(daemon, "credit", "credited").eq(&20.0).then_some(()));
    let delay = setup.check_delay_queue("1h");
    eventually("their checks wait", || client.ready(&delay)?.gt(&0).then_some(()));
    let lost = [
        (
            setup.check_queue.clone(),
            "its checks are lost; `pointsd reconcile --older-than 1m --apply` sends them again",
        ),
        (setup.credit_queue.clone(), "have the producer publish those of the last minutes again"),
        (notified, "have the producer publish those of the last minutes again"),
    ];
    for (queue, consequence) in &lost {
        client.delete_queue(queue);
        let line = format!("subject=\"queue {queue}\"");
        daemon.wait_for("it is declared again with a warning", |daemon| {
            let log = daemon.log();
            let warned =
                log.lines().find(|log| log.contains("gone from the broker") && log.contains(&line))?.to_owned();
            assert!(warned.contains(consequence), "{warned}");
            client.ready(queue)
        });
    }
    daemon.wait_ready();
    let told = daemon.log();
    assert!(told.contains(&format!("cancelled the consumer of {} ", setup.check_queue)), "{told}");
    // The command hides what is younger than its checks take, and says so; what the warning names finds it.
    let hidden = setup.run(&["reconcile"]);
    let hidden = String::from_utf8_lossy(&hidden.stdout).into_owned();
    assert!(hidden.starts_with("0 credits"), "{hidden}");
    assert!(hidden.contains("--older-than 1m"), "{hidden}");
    assert_eq!(setup.json(&["reconcile", "--json"])["younger_left_out"], true);
    assert!(setup.run(&["reconcile", "--older-than", "0s", "--apply"]).status.success());
    wait_for_checks(&daemon, "paid", "verify", 20.0);
    assert!(!String::from_utf8_lossy(&setup.run(&["reconcile"]).stdout).contains("--older-than"));
    assert_right(&setup);
    daemon.stop();
}

/// Each consumed queue is declared by its consumer alone: declared by another session right after it was deleted, the broker
/// could keep the consumer registered and deliver nothing to it.
#[test]
fn a_check_queue_that_is_deleted_with_its_delay_queues_under_traffic_is_consumed_again() {
    let (place, payments) = (Place::new(Kind::Postgres), Payments::new());
    let setup = setup(&place, "sql", &payments.settings(), "1s", r#"["2s"]"#);
    payments.set_all(&(1..=5000).map(|id| (id, PAID)).collect::<Vec<_>>());
    let daemon = start(&setup);
    let mut next = 1_u64;
    // The pauses decide whose session is being opened when the check queue goes.
    for pause in [40, 80, 120, 160, 250, 500, 900] {
        let done = AtomicBool::new(false);
        next = std::thread::scope(|scope| {
            let traffic = scope.spawn(|| {
                let client = Client::connect(&rabbit::shared().url());
                let mut id = next;
                while !done.load(Ordering::Relaxed) {
                    publish(&client, &setup, [id]);
                    id += 1;
                    std::thread::sleep(Duration::from_millis(15));
                }
                id
            });
            std::thread::sleep(Duration::from_millis(500));
            let client = Client::connect(&rabbit::shared().url());
            for queue in [setup.check_delay_queue("1s"), setup.check_delay_queue("2s"), setup.check_queue.clone()] {
                client.delete_queue(&queue);
                std::thread::sleep(Duration::from_millis(pause));
            }
            done.store(true, Ordering::Relaxed);
            traffic.join().unwrap()
        });
        daemon.wait_ready();
        let client = Client::connect(&rabbit::shared().url());
        publish(&client, &setup, [next]);
        wait_for_state(&setup, &daemon, next, &is("credited", true));
        next += 1;
    }
    let lost = daemon.log().lines().filter(|line| line.contains("gone from the broker")).count();
    assert!(lost >= 14, "they were deleted: {}", daemon.log());
    assert_right(&setup);
    daemon.stop();
}

#[test]
fn credits_that_should_have_been_checked_by_now_are_counted_as_overdue() {
    let (place, payments) = (Place::new(Kind::Postgres), Payments::new());
    let setup = setup(&place, "sql", &payments.settings(), "100ms", r#"["100ms"]"#);
    payments.set_all(&[(1, "ODD"), (2, PAID)]);
    let daemon = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    publish(&client, &setup, [1, 2]);
    eventually("one is parked", || client.ready(&setup.dead_queue)?.eq(&1).then_some(()));
    // A purged queue, two hours ago.
    place.execute(
        "INSERT INTO points_credits (payment_id, user_id, points) VALUES ('3', 'u', 10), ('4', 'u', 10);
         UPDATE points_balances SET balance = balance + 20 WHERE user_id = 'u';
         UPDATE points_credits SET credited_at = now() - interval '2 hours' WHERE payment_id <> '4'",
    );
    daemon.wait_for("they are counted", |daemon| {
        let counted = ["pointsd_unverified_credits", "pointsd_overdue_credits"].map(|series| daemon.metric(series));
        (counted == [3.0, 1.0]).then_some(())
    });
    let story = setup.json(&["payment", "1", "--ledger-only", "--json"]);
    assert!(!story["asked_at"].is_null(), "a person must decide: {story}");
    assert_eq!(setup.json(&["reconcile", "--json"])["found"], 2, "the list has what is parked, too");
    // A message of the parked one that comes again is not checked again; one of another is.
    publish(&client, &setup, [1, 4]);
    daemon.wait_for("both are duplicates", |daemon| messages(daemon, "credit", "duplicate").eq(&2.0).then_some(()));
    wait_for_state(&setup, &daemon, 4, &is("reversed", false));
    assert_eq!(checks(&daemon, "unrecognised", "recheck"), 1.0, "{}", daemon.log());
    assert_right(&setup);
    daemon.stop();
}

#[test]
fn a_verified_credit_whose_record_was_archived_stays() {
    let (place, payments) = (Place::new(Kind::Postgres), Payments::new());
    let setup = setup(&place, "sql", &payments.settings(), "100ms", r#"["100ms"]"#);
    payments.set_all(&[(1, PAID), (2, PAID), (3, PAID)]);
    let daemon = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    publish(&client, &setup, 1..=3);
    wait_for_checks(&daemon, "paid", "verify", 3.0);
    payments.execute("DELETE FROM shop.payments WHERE id = 1");
    payments.set_all(&[(2, PENDING), (3, CLOSED)]);
    // The messages come again; and their checks, which somebody sends.
    publish(&client, &setup, 1..=3);
    daemon.wait_for("they are duplicates", |daemon| messages(daemon, "credit", "duplicate").eq(&3.0).then_some(()));
    let entries: Vec<_> = [1, 2, 3].iter().map(|id: &u64| check_entry(&id.to_string(), "u", 10)).collect();
    client.publish("", &setup.check_queue, [check_message(&entries, 0)]);
    wait_for_state(&setup, &daemon, 3, &is("reversed", true));
    wait_for_checks(&daemon, "unknown", "none", 1.0);
    eventually("a person decides about the pending one", || client.ready(&setup.dead_queue)?.eq(&1).then_some(()));
    let parked = client.take(&setup.dead_queue).unwrap();
    assert_eq!(text(&parked, "x-pointsd-reason").as_deref(), Some("expired"));
    for payment in [1, 2] {
        assert_eq!(state(&setup, payment), is("credited", true), "{payment}");
    }
    assert_eq!(setup.json(&["balance", "u", "--json"])["balance"], 20);
    daemon.stop();
}

#[test]
fn a_notification_without_effect_is_logged_once() {
    let (place, payments, name) = (Place::new(Kind::Sqlite), Payments::new(), unique("effect"));
    payments.execute("ALTER TABLE shop.payments ADD amount bigint DEFAULT 0");
    let settings = format!(
        "{}user_column = \"buyer\"\namount_column = \"amount\"\npoints_per_unit = \"1\"\n[[source]]\nname = \"trade\"\n\
         exchange = \"{name}\"\nrouting_key = \"k\"\nqueue = \"{name}.q\"\nformat = \"payment_id\"\n",
        payments.settings()
    );
    let setup = setup(&place, "sql", &settings, "1h", r#"["1h"]"#);
    payments.set_all(&[(1, CLOSED), (2, PAID)]);
    let daemon = start(&setup);
    wait_for_queue(&daemon, &format!("{name}.q"));
    let client = Client::connect(&rabbit::shared().url());
    client.publish(&name, "k", [b"1", b"2"].map(|id| (id.to_vec(), BasicProperties::default())));
    for (payment, why) in [("1", "closed"), ("2", "gives no points")] {
        daemon.wait_for("it is logged", |daemon| {
            let log = daemon.log();
            let lines = log.lines().filter(|line| line.contains("notification without effect"));
            let named = format!("payment_id=\"{payment}\"");
            (lines.filter(|line| line.contains(&named) && line.contains(why)).count() == 1).then_some(())
        });
    }
    daemon.stop();
}
