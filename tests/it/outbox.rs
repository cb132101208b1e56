//! The outbox: whatever was committed is made known, at least once, in order; nothing else is.

use crate::{
    compensation::{body, is, state, wait_for_state},
    support::{
        amqp::Client,
        daemon::{Daemon, Setup, told},
        eventually,
        flow::Dice,
        ledger::{Kind, Place},
        payments::Payments,
        rabbit::{self, Rabbit},
        unique,
    },
};
use lapin::{BasicProperties, ExchangeKind};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

fn setup(broker: &str, place: &Place, more: &str) -> (Setup, String) {
    let events = unique("events");
    let setup = Setup::new(broker, &place.url, &format!("[events]\nenabled = true\nexchange = {events:?}\n{more}"));
    (setup, events)
}

/// A queue that hears everything of an exchange, once that is there.
fn listen(client: &Client, exchange: &str) -> String {
    let queue = format!("{exchange}.heard");
    client.declare_queue(&queue, &[]);
    eventually("the exchange is there", || client.try_bind(&queue, exchange, "#"));
    queue
}

fn events(client: &Client, queue: &str) -> Vec<Value> {
    client.drain(queue).iter().map(|message| serde_json::from_slice(&message.delivery.data).unwrap()).collect()
}

/// What another program writes, in a transaction of its own.
fn insert(exchange: &str, key: &str, message_id: &str, body: &str) -> String {
    format!(
        "INSERT INTO points_outbox (exchange, routing_key, key, message_id, body) \
         VALUES ('{exchange}', 'other.{key}', '{key}', '{message_id}', '{body}')"
    )
}

#[test]
fn credits_reversals_and_reinstatements_are_made_known_in_order() {
    for kind in [Kind::Postgres, Kind::Sqlite] {
        let (place, payments) = (Place::new(kind), Payments::new());
        let more = format!(
            "[compensation]\nfirst = \"500ms\"\ndelays = [\"2s\"]\n[pay_status]\nsource = \"sql\"\n{}",
            payments.settings()
        );
        let (setup, exchange) = setup(&rabbit::shared().url(), &place, &more);
        let daemon = setup.start();
        daemon.wait_ready();
        let client = Client::connect(&rabbit::shared().url());
        let queue = listen(&client, &exchange);
        payments.set_all(&[(1, "TRADE_SUCCESS"), (2, "TRADE_CLOSED"), (3, "WAIT_BUYER_PAY")]);
        let message = |id| (body(id, "u", 10), BasicProperties::default());
        // One that is there twice is made known once.
        client.publish(&setup.exchange, &setup.key, [message(1), message(2), message(3), message(1)]);
        wait_for_state(&setup, &daemon, 3, &is("reversed", false));
        payments.set(3, "TRADE_SUCCESS");
        wait_for_state(&setup, &daemon, 3, &is("credited", true));
        let mut heard = Vec::new();
        daemon.wait_for("all of it is heard", |_| {
            heard.extend(events(&client, &queue));
            heard.len().ge(&6).then_some(())
        });
        let of = |id: &str| -> Vec<(String, Value, Value)> {
            let of = heard.iter().filter(|event| event["payment_id"] == id);
            of.map(|event| {
                (event["type"].as_str().unwrap().to_owned(), event["points"].clone(), event["reason"].clone())
            })
            .collect()
        };
        let told = |kind: &str, reason: Value| (kind.to_owned(), Value::from(10), reason);
        assert_eq!(of("1"), [told("points.credited", Value::Null)]);
        assert_eq!(of("2"), [told("points.credited", Value::Null), told("points.reversed", "closed".into())]);
        assert_eq!(
            of("3"),
            [
                told("points.credited", Value::Null),
                told("points.reversed", "expired".into()),
                told("points.reinstated", "paid after all".into())
            ]
        );
        let ids: BTreeSet<&str> = heard.iter().map(|event| event["event_id"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), 6, "each has its own id");
        assert!(heard.iter().all(|event| event["user_id"] == "u" && event["at"].as_str().unwrap().ends_with('Z')));
        let report = setup.json(&["outbox", "list", "--json"]);
        assert_eq!((&report["rows"], &report["held"]), (&0.into(), &0.into()), "{report}");
        daemon.stop();
    }
}

#[test]
fn without_events_nothing_is_written_and_replay_writes_them_too() {
    for kind in [Kind::Postgres, Kind::Sqlite] {
        let place = Place::new(kind);
        let quiet = Setup::new(&rabbit::shared().url(), &place.url, "");
        let file = quiet.folder.path().join("messages");
        std::fs::write(&file, body(1, "u", 5)).unwrap();
        assert!(quiet.run(&["replay", file.to_str().unwrap()]).status.success());
        assert_eq!(quiet.json(&["outbox", "list", "--json"])["rows"], 0);
        let (loud, exchange) = setup(&rabbit::shared().url(), &place, "");
        std::fs::write(&file, body(2, "u", 5)).unwrap();
        assert!(loud.run(&["replay", file.to_str().unwrap()]).status.success());
        let report = loud.json(&["outbox", "list", "--json"]);
        assert_eq!(report["rows"], 1, "{report}");
        let message = &report["messages"][0];
        assert_eq!((message["exchange"].as_str(), message["key"].as_str()), (Some(exchange.as_str()), Some("2")));
        assert!(message.get("body").is_none(), "a body is nobody's to see");
    }
}

#[test]
fn what_another_program_commits_is_published_within_a_second_and_what_it_rolls_back_never() {
    for kind in [Kind::Postgres, Kind::Sqlite] {
        let place = Place::new(kind);
        let (setup, exchange) = setup(&rabbit::shared().url(), &place, "");
        let daemon = setup.start();
        daemon.wait_ready();
        let client = Client::connect(&rabbit::shared().url());
        let queue = listen(&client, &exchange);
        place.execute(&format!("BEGIN; {}; ROLLBACK", insert(&exchange, "a", "rolled-back", "{}")));
        let mut times = Vec::new();
        for round in 0..20 {
            let begun = Instant::now();
            let (id, text) = (format!("m{round}"), format!("{{\"n\": {round}}}"));
            place.execute(&format!("BEGIN; {}; COMMIT", insert(&exchange, "a", &id, &text)));
            let message = eventually("it is published", || client.take(&queue));
            times.push(begun.elapsed());
            assert_eq!(message.delivery.data, text.as_bytes());
            let properties = &message.delivery.properties;
            assert_eq!(properties.message_id().as_ref().map(ToString::to_string), Some(id));
            assert_eq!(*properties.delivery_mode(), Some(2));
            assert_eq!(message.delivery.routing_key.as_str(), "other.a");
        }
        // Other tests run beside this one: the median says what the relay does.
        times.sort();
        assert!(times[10] < Duration::from_secs(1), "at idle within a second: {times:?}");
        assert!(client.take(&queue).is_none());
        daemon.stop();
    }
}

#[test]
fn an_undeliverable_message_is_held_and_told_and_holds_back_only_its_own_key() {
    for kind in [Kind::Postgres, Kind::Sqlite] {
        let place = Place::new(kind);
        let (setup, exchange) = setup(&rabbit::shared().url(), &place, "");
        let daemon = setup.start();
        daemon.wait_ready();
        let client = Client::connect(&rabbit::shared().url());
        let queue = listen(&client, &exchange);
        let lonely = unique("lonely");
        client.declare_exchange(&lonely, ExchangeKind::Topic);
        let rows = [
            // To an exchange without a queue, to one that is not there, and with headers that no frame takes.
            insert(&lonely, "a", "a1", "{}"),
            insert("nowhere", "b", "b1", "{}"),
            insert(&exchange, "a", "a2", "{}"),
            insert(&exchange, "b", "b2", "{}"),
            insert(&exchange, "c", "c1", "{}"),
            insert(&exchange, "d", "d1", "{}")
                .replace("(exchange,", "(headers, exchange,")
                .replace("VALUES (", &format!("VALUES ('{{\"x\": \"{}\"}}', ", "y".repeat(200_000))),
        ];
        place.execute(&format!("BEGIN; {}; COMMIT", rows.join("; ")));
        let id = |message: lapin::message::BasicGetMessage| {
            message.delivery.properties.message_id().as_ref().unwrap().to_string()
        };
        assert_eq!(id(eventually("the other one comes", || client.take(&queue))), "c1");
        daemon
            .wait_for("the metric tells of them", |daemon| daemon.metric("pointsd_outbox_rows").eq(&5.0).then_some(()));
        daemon
            .wait_for("and their age", |daemon| daemon.metric("pointsd_outbox_oldest_seconds").gt(&0.0).then_some(()));
        assert!(client.take(&queue).is_none(), "what stands behind a held one waits");
        let report = eventually("they are told as held", || {
            let report = setup.json(&["outbox", "list", "--held", "--json"]);
            (report["held"] == 5).then_some(report)
        });
        let error = |id: &str| {
            let messages = report["messages"].as_array().unwrap();
            let message = messages.iter().find(|message| message["message_id"] == id).unwrap();
            message["last_error"].as_str().map(str::to_owned)
        };
        assert_eq!(error("a1").as_deref(), Some("reached no queue: NO_ROUTE"));
        assert!(error("b1").unwrap().contains("NOT_FOUND"), "{report}");
        assert!(error("d1").unwrap().contains("frame_max"), "{report}");
        assert_eq!((error("a2"), error("b2")), (None, None));

        // A listener comes, the pause grows meanwhile, and a person does not want to wait for its end.
        client.declare_queue(&format!("{lonely}.q"), &[]);
        client.bind(&format!("{lonely}.q"), &lonely, "#");
        let held = report["messages"][0]["id"].to_string();
        assert!(setup.run(&["outbox", "retry", &held]).status.success());
        assert_eq!(id(eventually("it is delivered", || client.take(&format!("{lonely}.q")))), "a1");
        assert_eq!(id(eventually("and what waited behind it", || client.take(&queue))), "a2");
        // What nobody will ever want is dropped, and what waited behind it comes.
        let report = setup.json(&["outbox", "list", "--json"]);
        let dropped: Vec<String> = report["messages"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|message| message["message_id"] != "b2")
            .map(|message| message["id"].to_string())
            .collect();
        let refused =
            setup.run(&[&["outbox", "drop"][..], &dropped.iter().map(String::as_str).collect::<Vec<_>>()].concat());
        assert_eq!(refused.status.code(), Some(2), "nobody there to ask: {}", told(&refused));
        let mut arguments = vec!["outbox", "drop", "--yes", "--json"];
        arguments.extend(dropped.iter().map(String::as_str));
        assert_eq!(setup.json(&arguments)["dropped"], 2);
        assert!(setup.run(&["outbox", "retry", "--held"]).status.success());
        assert_eq!(id(eventually("it comes", || client.take(&queue))), "b2");
        daemon.wait_for("nothing is left", |daemon| daemon.metric("pointsd_outbox_rows").eq(&0.0).then_some(()));
        daemon.stop();
    }
}

/// What a listener has heard: message ids in the order of their first coming, with their keys.
#[derive(Default)]
struct Heard {
    seen: BTreeSet<String>,
    order: BTreeMap<String, Vec<u64>>,
    repeated: usize,
}

impl Heard {
    /// `key/number` is the id of each.
    fn hear(&mut self, client: &Client, queue: &str) {
        for message in std::iter::from_fn(|| client.take(queue)).take(5000) {
            let id = message.delivery.properties.message_id().as_ref().unwrap().to_string();
            if !self.seen.insert(id.clone()) {
                self.repeated += 1;
                continue;
            }
            if let Some((key, number)) = id.split_once('/') {
                self.order.entry(key.to_owned()).or_default().push(number.parse().unwrap());
            }
        }
    }

    fn assert_in_order(&self) {
        for (key, numbers) in &self.order {
            assert!(numbers.is_sorted(), "key {key}: {numbers:?}");
        }
    }
}

/// Rows of another program, some of them rolled back, while the daemon credits; it is killed at random moments, the broker is
/// stopped and killed, and the exchange deleted. The ids of what was committed.
fn the_relay_survives(kind: Kind) {
    let mut rabbit = Rabbit::start(None);
    let place = Place::new(kind);
    let (setup, exchange) = setup(&rabbit.url(), &place, "");
    let mut client = Client::connect(&rabbit.url());
    let mut daemon = start(&setup);
    let queue = listen(&client, &exchange);
    let (mut heard, mut committed, mut number, mut dice) =
        (Heard::default(), BTreeSet::new(), 0, Dice::new(kind as u64 + 5));
    let (mut kills, mut payment) = (0, 0);
    for round in 0..14 {
        // A few hundred rows at once, so that the relay is at it when something strikes.
        let mut sql = String::from("BEGIN;");
        let rolls_back = dice.below(4) == 0;
        for _ in 0..300 {
            number += 1;
            let key = format!("k{}", dice.below(20));
            let id = format!("{key}/{number}");
            sql.push_str(&insert(&exchange, &key, &id, "{}"));
            sql.push(';');
            if !rolls_back {
                committed.insert(id);
            }
        }
        sql.push_str(if rolls_back { "ROLLBACK" } else { "COMMIT" });
        place.execute(&sql);
        let credits = (0..50).map(|_| {
            payment += 1;
            (body(payment, "u", 1), BasicProperties::default().with_delivery_mode(2))
        });
        client.publish(&setup.exchange, &setup.key, credits.collect::<Vec<_>>());
        std::thread::sleep(Duration::from_millis(dice.below(150)));
        match round % 7 {
            3 => {
                // What is not made known yet is left in the table; a listener that is gone misses nothing.
                heard.hear(&client, &queue);
                client.delete_exchange(&exchange);
                std::thread::sleep(Duration::from_millis(1500));
                listen(&client, &exchange);
            }
            5 => {
                drop(client);
                if dice.below(2) == 0 {
                    rabbit.stop();
                } else {
                    rabbit.kill();
                }
                std::thread::sleep(Duration::from_millis(500));
                rabbit.boot();
                client = Client::connect(&rabbit.url());
            }
            _ => {
                let left = setup.json(&["outbox", "list", "--limit", "0", "--json"])["rows"].as_u64().unwrap();
                kills += u32::from(left > 0);
                daemon.kill();
                daemon = start(&setup);
            }
        }
    }
    assert!(kills > 2, "it was killed while there was something to publish: {kills}");
    assert!(setup.run(&["outbox", "retry", "--held"]).status.success());
    daemon.wait_for("nothing is left in the outbox", |_| {
        heard.hear(&client, &queue);
        let report = setup.json(&["outbox", "list", "--limit", "0", "--json"]);
        let credited = setup.json(&["verify", "--json"])["credits"].as_u64()?;
        (report["rows"] == 0 && credited == payment).then_some(())
    });
    heard.hear(&client, &queue);
    let of_others: BTreeSet<String> = heard.seen.iter().filter(|id| id.contains('/')).cloned().collect();
    assert_eq!(of_others.len(), committed.len(), "each that was committed, {} of them again", heard.repeated);
    assert!(of_others == committed, "and none that was rolled back");
    assert_eq!(heard.seen.len() - of_others.len(), usize::try_from(payment).unwrap(), "and every credit");
    heard.assert_in_order();
    daemon.stop();
}

fn start(setup: &Setup) -> Daemon {
    let daemon = setup.start();
    daemon.wait_ready();
    daemon
}

#[test]
fn the_relay_survives_kills_broker_restarts_and_a_deleted_exchange_on_postgres() {
    the_relay_survives(Kind::Postgres);
}

#[test]
fn the_relay_survives_kills_broker_restarts_and_a_deleted_exchange_on_sqlite() {
    the_relay_survives(Kind::Sqlite);
}

#[test]
fn two_daemons_relay_a_hundred_thousand_rows_one_after_the_other() {
    const ROWS: u64 = 100_000;
    let rabbit = Rabbit::start(None);
    let place = Place::new(Kind::Postgres);
    let (setup, exchange) = setup(&rabbit.url(), &place, "");
    let client = Client::connect(&rabbit.url());
    let mut daemons = vec![start(&setup), start(&setup)];
    let queue = listen(&client, &exchange);
    place.execute(&format!(
        "INSERT INTO points_outbox (exchange, routing_key, key, message_id, body) \
         VALUES ('nowhere', '', 'k7', 'undeliverable', '{{}}'); \
         INSERT INTO points_outbox (exchange, routing_key, key, message_id, body) \
         SELECT '{exchange}', 'r', 'k' || n % 1000, 'k' || n % 1000 || '/' || n, '{{}}' FROM generate_series(1, {ROWS}) AS n"
    ));
    let left = || setup.json(&["outbox", "list", "--limit", "0", "--json"])["rows"].as_u64().unwrap();
    let mut last = left();
    for kill in 0..5 {
        // The one that relays: it said so, and only its death takes the turn from it.
        let relaying = eventually("one of them relays", || {
            let relaying = daemons.iter().position(|daemon| daemon.log().contains("relaying the outbox"))?;
            let now = left();
            (now < last).then_some((relaying, now))
        });
        daemons.remove(relaying.0).kill();
        let left = left();
        assert!(left > 1, "kill {kill} found nothing to relay");
        last = left;
        daemons.push(start(&setup));
    }
    let mut heard = Heard::default();
    let (mut payment, mut slowest) = (0, Duration::ZERO);
    let begun = Instant::now();
    let expected = usize::try_from(ROWS - ROWS / 1000).unwrap();
    while heard.seen.iter().filter(|id| id.contains('/')).count() < expected {
        assert!(begun.elapsed() < Duration::from_secs(300), "{} of {expected}", heard.seen.len());
        // Crediting goes on beside it.
        payment += 1;
        let published = Instant::now();
        client.publish(&setup.exchange, &setup.key, [(body(payment, "u", 1), BasicProperties::default())]);
        eventually("it is credited", || (state(&setup, payment) == is("credited", false)).then_some(()));
        slowest = slowest.max(published.elapsed());
        heard.hear(&client, &queue);
    }
    assert!(slowest < Duration::from_secs(10), "crediting never waited for the relay: {slowest:?}");
    heard.assert_in_order();
    let report = setup.json(&["outbox", "list", "--held", "--json"]);
    assert_eq!(report["held"], 1 + ROWS / 1000, "only what stands behind the undeliverable one waits: {report}");
    assert_eq!(report["messages"][0]["message_id"], "undeliverable");
    for daemon in daemons {
        daemon.stop();
    }
}

#[test]
fn what_the_broker_refuses_is_held_alone_however_much_is_on_its_way() {
    for kind in [Kind::Postgres, Kind::Sqlite] {
        let place = Place::new(kind);
        let (setup, exchange) = setup(&rabbit::shared().url(), &place, "");
        let daemon = start(&setup);
        let client = Client::connect(&rabbit::shared().url());
        let queue = listen(&client, &exchange);
        let forbidden = unique("forbidden");
        client.declare_internal_exchange(&forbidden);
        // Every hundredth of them ends the channel.
        let row = |n: u32| {
            let exchange = if n % 100 == 3 { &forbidden } else { &exchange };
            insert(exchange, &format!("k{n}"), &format!("k{n}/{n}"), &"x".repeat(500))
        };
        let rows: Vec<String> = (0..1200).map(row).collect();
        place.execute(&format!("BEGIN; {}; COMMIT", rows.join("; ")));
        let mut heard = Heard::default();
        daemon.wait_for("the others come", |_| {
            heard.hear(&client, &queue);
            heard.seen.len().ge(&1188).then_some(())
        });
        let report = eventually("the refused ones are held", || {
            let report = setup.json(&["outbox", "list", "--held", "--json"]);
            (report["held"] == 12 && report["rows"] == 12).then_some(report)
        });
        assert!(report["messages"][0]["last_error"].as_str().unwrap().contains("internal exchange"), "{report}");
        daemon.stop();
    }
}

#[test]
fn rows_of_other_programs_that_are_odd_hold_up_nobody() {
    for kind in [Kind::Postgres, Kind::Sqlite] {
        let place = Place::new(kind);
        let (setup, exchange) = setup(&rabbit::shared().url(), &place, "");
        let daemon = start(&setup);
        let client = Client::connect(&rabbit::shared().url());
        let queue = listen(&client, &exchange);
        let lonely = unique("lonely");
        client.declare_exchange(&lonely, ExchangeKind::Topic);
        let mut rows = vec![
            // One id for two messages, one of which reaches nobody.
            insert(&lonely, "a", "twice", "{}"),
            insert(&exchange, "b", "twice", "{}"),
            // No key at all, and the database's own id.
            format!(
                "INSERT INTO points_outbox (exchange, routing_key, body) VALUES ('{exchange}', 'bare', 'not json')"
            ),
        ];
        let mut held = 1;
        if kind == Kind::Sqlite {
            // SQLite takes any bytes for a text.
            rows.push(format!("INSERT INTO points_outbox (exchange, routing_key, key, body) VALUES ('{exchange}', CAST(x'ff' AS TEXT), 'c', '')"));
            held += 1;
        }
        rows.push(insert(&exchange, "d", "last", "{}"));
        place.execute(&format!("BEGIN; {}; COMMIT", rows.join("; ")));
        let mut ids = Vec::new();
        daemon.wait_for("the sound ones come", |_| {
            ids.extend(
                client
                    .drain(&queue)
                    .iter()
                    .map(|message| message.delivery.properties.message_id().as_ref().unwrap().to_string()),
            );
            ids.len().ge(&3).then_some(())
        });
        assert_eq!((ids[0].as_str(), ids[2].as_str()), ("twice", "last"));
        assert!(ids[1].len() >= 32, "an id of its own: {}", ids[1]);
        eventually("the others are held", || {
            let report = setup.json(&["outbox", "list", "--held", "--json"]);
            (report["held"] == held && report["rows"] == held).then_some(())
        });
        std::thread::sleep(Duration::from_millis(2500));
        assert!(client.take(&queue).is_none(), "what was delivered does not come again");
        for (column, value) in
            [("exchange", "x".repeat(256)), ("headers", "[]".into()), ("body", "x".repeat(1_048_577))]
        {
            let columns = if column == "exchange" { "body" } else { "exchange" };
            let extra = if column == "headers" { ", body) VALUES ('[]', 'e', 'b')" } else { ") VALUES ('VALUE', 'e')" };
            let sql = format!("INSERT INTO points_outbox ({column}, {columns}{}", extra.replace("VALUE", &value));
            let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| place.execute(&sql)));
            assert!(refused.is_err(), "{column}: the writer is told");
        }
        daemon.stop();
    }
}

#[test]
fn a_transaction_that_took_its_ids_early_and_commits_late_is_published_all_the_same() {
    use diesel::{Connection, PgConnection, connection::SimpleConnection};
    let place = Place::new(Kind::Postgres);
    let (setup, exchange) = setup(&rabbit::shared().url(), &place, "");
    let daemon = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    let queue = listen(&client, &exchange);
    let mut early = PgConnection::establish(&place.url).unwrap();
    early.batch_execute(&format!("BEGIN; {}", insert(&exchange, "a", "a/1", "{}"))).unwrap();
    // Others never stop meanwhile.
    let mut heard = Heard::default();
    for n in 2..200 {
        place.execute(&insert(&exchange, "b", &format!("b/{n}"), "{}"));
        if n == 100 {
            early.batch_execute("COMMIT").unwrap();
        }
        heard.hear(&client, &queue);
        if n == 199 {
            daemon.wait_for("all are heard", |_| {
                heard.hear(&client, &queue);
                heard.seen.len().eq(&199).then_some(())
            });
        }
    }
    heard.assert_in_order();
    daemon.stop();
}

#[test]
fn a_key_with_thousands_of_rows_behind_an_undeliverable_one_keeps_its_order() {
    const ROWS: u64 = 4000;
    let place = Place::new(Kind::Postgres);
    let (setup, exchange) = setup(&rabbit::shared().url(), &place, "");
    let daemon = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    let queue = listen(&client, &exchange);
    let lonely = unique("lonely");
    client.declare_exchange(&lonely, ExchangeKind::Topic);
    place.execute(&format!(
        "BEGIN; {}; INSERT INTO points_outbox (exchange, routing_key, key, message_id, body) \
         SELECT '{exchange}', 'r', 'hot', 'hot/' || n, '{{}}' FROM generate_series(1, {ROWS}) AS n; COMMIT",
        insert(&lonely, "hot", "head", "{}")
    ));
    eventually("all of them wait", || {
        (setup.json(&["outbox", "list", "--limit", "0", "--json"])["held"] == ROWS + 1).then_some(())
    });
    assert!(client.take(&queue).is_none());
    client.declare_queue(&format!("{lonely}.q"), &[]);
    client.bind(&format!("{lonely}.q"), &lonely, "#");
    assert!(setup.run(&["outbox", "retry", "--all"]).status.success());
    let mut heard = Heard::default();
    daemon.wait_for("all of them come", |_| {
        heard.hear(&client, &queue);
        (heard.seen.len() as u64).eq(&ROWS).then_some(())
    });
    heard.assert_in_order();
    daemon.stop();
}

#[test]
fn a_person_may_retry_and_drop_beside_a_busy_relay() {
    const ROWS: usize = 10_000;
    let place = Place::new(Kind::Postgres);
    let (setup, exchange) = setup(&rabbit::shared().url(), &place, "");
    let daemon = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    let queue = listen(&client, &exchange);
    place.execute(&format!(
        "INSERT INTO points_outbox (exchange, routing_key, key, message_id, body) \
         SELECT CASE WHEN n % 2 = 0 THEN '{exchange}' ELSE 'nowhere' END, 'r', 'k' || n, 'k' || n || '/' || n, '{{}}' \
           FROM generate_series(1, {}) AS n",
        2 * ROWS
    ));
    for _ in 0..8 {
        let output = setup.run(&["outbox", "retry", "--all"]);
        assert!(output.status.success(), "{}", told(&output));
    }
    let mut heard = Heard::default();
    daemon.wait_for("those that can be delivered come", |_| {
        heard.hear(&client, &queue);
        heard.seen.len().ge(&ROWS).then_some(())
    });
    eventually("nothing but the others is left", || {
        let output = setup.run(&["outbox", "drop", "--held", "--yes"]);
        assert!(output.status.success(), "{}", told(&output));
        (setup.json(&["outbox", "list", "--limit", "0", "--json"])["rows"] == 0).then_some(())
    });
    heard.hear(&client, &queue);
    assert_eq!((heard.seen.len(), heard.repeated), (ROWS, 0));
    let log = daemon.log();
    assert!(!log.contains("paused"), "nobody was in the relay's way: {log}");
    daemon.stop();
}

#[test]
fn relays_of_two_schemas_of_one_database_do_not_wait_for_each_other() {
    let owner = crate::support::postgres::shared().database();
    let outbox_of = |schema: &str| {
        crate::support::postgres::Postgres::execute(&owner, &format!("CREATE SCHEMA {schema}"));
        let url = format!("{owner}?options=-csearch_path%3D{schema}");
        let url = pointsd::database::DatabaseUrl::parse(&url, None).unwrap();
        let options = pointsd::ledger::Options {
            pool_size: 1,
            timeout: Duration::from_secs(10),
            access: pointsd::ledger::Access::Write,
            events: None,
        };
        pointsd::ledger::open(&url, &options).migrate().unwrap();
        [0, 1].map(|_| pointsd::ledger::open_outbox(&url, Duration::from_secs(10)))
    };
    let ([one, second_of_one], [other, _]) = (outbox_of("one"), outbox_of("other"));
    assert!(one.take_turn().unwrap() && other.take_turn().unwrap());
    assert!(!second_of_one.take_turn().unwrap(), "one relay a schema");
}
