//! A message that fails for a reason of its own: tried again at once, then after delays, then parked. The others are
//! credited meanwhile.

use crate::support::{
    amqp::{Client, text},
    daemon::{Daemon, Setup},
    eventually,
    flow::{Flow, work_off},
    ledger::{Kind, Place},
    rabbit::{self, Rabbit},
};
use diesel::{Connection, PgConnection, connection::SimpleConnection};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use pointsd::database::DatabaseUrl;
use std::time::Duration;

fn body(payment: &str, user: &str) -> Vec<u8> {
    format!(r#"{{"paymentId":"{payment}","userId":"{user}","integral":1}}"#).into_bytes()
}

/// A PostgreSQL ledger in which the payment `transient` fails as a transaction does that lost against another.
fn failing_ledger() -> Place {
    let place = Place::new(Kind::Postgres);
    place.open().migrate().unwrap();
    place.execute(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
           RAISE EXCEPTION 'could not serialize access' USING ERRCODE = '40001'; END $$;
         CREATE TRIGGER fail BEFORE INSERT ON points_credits FOR EACH ROW \
           WHEN (NEW.payment_id LIKE 'transient%') EXECUTE FUNCTION fail()",
    );
    place
}

fn mend(place: &Place) {
    place.execute("DROP TRIGGER fail ON points_credits");
}

fn start(setup: &Setup, delays: &str) -> Daemon {
    let daemon = setup.start_with(|command| {
        command.env("POINTSD_RETRY__DELAYS", delays).env("POINTSD_LOG__FORMAT", "json");
    });
    daemon.wait_ready();
    daemon
}

/// The times of the log's lines with this message, and the lines.
fn logged(daemon: &Daemon, message: &str) -> Vec<(jiff::Timestamp, serde_json::Value)> {
    let log = daemon.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines
        .filter(|line| line["message"] == message)
        .map(|line| (line["timestamp"].as_str().unwrap().parse().unwrap(), line))
        .collect()
}

#[test]
fn one_payment_that_is_refused_costs_the_other_499_nothing() {
    let place = Place::new(Kind::Postgres);
    place.open().migrate().unwrap();
    place.execute("ALTER TABLE points_credits ADD CONSTRAINT no_such_payment CHECK (payment_id <> 'p250')");
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    assert!(setup.run(&["topology", "declare"]).status.success());
    let client = Client::connect(&rabbit::shared().url());
    let bodies = (0..500).map(|n| (body(&format!("p{n}"), "u"), BasicProperties::default()));
    client.publish(&setup.exchange, &setup.key, bodies);
    let daemon = setup.start();
    daemon.wait_ready();
    eventually("one is parked", || client.ready(&setup.dead_queue)?.eq(&1).then_some(()));
    daemon.wait_for("499 are credited", |daemon| {
        daemon.metric(r#"pointsd_messages_total{queue="credit",outcome="credited"}"#).eq(&499.0).then_some(())
    });
    let parked = client.take(&setup.dead_queue).unwrap();
    assert_eq!(parked.delivery.data, body("p250", "u"));
    assert_eq!(text(&parked, "x-pointsd-reason"), Some("rejected".into()));
    let error = text(&parked, "x-pointsd-error").unwrap();
    assert!(error.contains("no_such_payment"), "{error}");
    assert_eq!(setup.json(&["balance", "u", "--json"])["balance"], 499);
    assert_eq!(daemon.metric(r#"pointsd_messages_total{queue="credit",outcome="retry"}"#), 0.0);
    assert_eq!(client.ready(&setup.never_used()), Some(0));
    daemon.stop();
}

#[test]
fn a_message_that_keeps_failing_takes_each_step_at_its_time_and_is_parked_as_exhausted() {
    let mut rabbit = Rabbit::start(None);
    let place = failing_ledger();
    let setup = Setup::new(&rabbit.url(), &place.url, "");
    let daemon = start(&setup, r#"["1s", "2s", "12s"]"#);
    let client = Client::connect(&rabbit.url());
    let id = |id: &str| BasicProperties::default().with_message_id(id.into());
    let messages = [("a", "m-1"), ("transient", "m-2"), ("b", "m-3")];
    client.publish(&setup.exchange, &setup.key, messages.map(|(payment, m)| (body(payment, "u"), id(m))));
    eventually("the others are credited", || setup.json(&["balance", "u", "--json"])["balance"].eq(&2).then_some(()));
    daemon
        .wait_for("it waits for the third time", |daemon| logged(daemon, "message delayed").len().eq(&3).then_some(()));
    drop(client);
    // A broker that restarts keeps what waits.
    rabbit.stop();
    rabbit.boot();
    let client = Client::connect(&rabbit.url());
    eventually("it is parked", || client.ready(&setup.dead_queue)?.eq(&1).then_some(()));

    let delayed = logged(&daemon, "message delayed");
    let parked = logged(&daemon, "message parked");
    let attempts: Vec<_> = delayed.iter().map(|(_, line)| line["attempt"].clone()).collect();
    assert_eq!(attempts, [1, 2, 3]);
    assert!(delayed.iter().all(|(_, line)| line["payment_id"] == "transient"), "{delayed:?}");
    let times: Vec<_> = delayed.iter().chain(&parked).map(|(at, _)| *at).collect();
    let waited: Vec<f64> = times.windows(2).map(|pair| pair[1].duration_since(pair[0]).as_secs_f64()).collect();
    // Late by the attempts themselves; the last one also by the broker's restart, which it may have outlasted.
    for (waited, (delay, late)) in waited.iter().zip([(1.0, 5.0), (2.0, 5.0), (12.0, 30.0)]) {
        assert!((delay..delay + late).contains(waited), "{waited} s instead of {delay} s");
    }
    let copy = client.take(&setup.dead_queue).unwrap();
    assert_eq!(copy.delivery.data, body("transient", "u"));
    assert_eq!(*copy.delivery.properties.message_id(), Some("m-2".into()));
    assert_eq!(text(&copy, "x-pointsd-reason"), Some("exhausted".into()));
    assert_eq!(text(&copy, "x-pointsd-attempt"), Some("LongLongInt(3)".into()));
    assert!(text(&copy, "x-pointsd-error").unwrap().contains("could not serialize access"));
    let first: jiff::Timestamp = text(&copy, "x-pointsd-first-failed-at").unwrap().parse().unwrap();
    assert!(first.duration_since(times[0]).as_secs_f64().abs() < 2.0, "the first failure's time, not the last one's");
    assert_eq!(client.ready(&setup.credit_queue), Some(0));
    daemon.stop();
}

#[test]
fn a_message_that_fails_no_more_is_credited_by_its_next_retry() {
    let place = failing_ledger();
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let daemon = start(&setup, r#"["500ms", "2s"]"#);
    let client = Client::connect(&rabbit::shared().url());
    client.publish(&setup.exchange, &setup.key, [(body("transient", "u"), BasicProperties::default())]);
    daemon.wait_for("it waits for the second time", |daemon| {
        logged(daemon, "message delayed").len().eq(&2).then_some(())
    });
    mend(&place);
    daemon.wait_for("it is credited", |_| setup.json(&["balance", "u", "--json"])["balance"].eq(&1).then_some(()));
    assert_eq!(daemon.metric(r#"pointsd_messages_total{queue="credit",outcome="retry"}"#), 2.0);
    assert_eq!(client.ready(&setup.dead_queue), Some(0));
    assert!(daemon.get("/readyz").unwrap().0 == 200 && logged(&daemon, "paused").is_empty(), "nothing was paused");
    daemon.stop();
}

#[test]
fn a_retry_copy_keeps_what_is_foreign_and_counts_the_attempt_across_daemons() {
    let place = failing_ledger();
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let delays = r#"["1h", "2h"]"#;
    let mut daemon = start(&setup, delays);
    let client = Client::connect(&rabbit::shared().url());
    let mut headers = FieldTable::default();
    for (name, value) in [
        ("trace", AMQPValue::LongString("t-1".into())),
        ("n", AMQPValue::ShortInt(-5)),
        ("at", AMQPValue::Timestamp(1_700_000_000)),
        ("bytes", AMQPValue::LongString(vec![0xff_u8, 0, 1].into())),
        ("CC", AMQPValue::FieldArray(vec![AMQPValue::LongString("nowhere".into())].into())),
        ("x-delivery-count", AMQPValue::LongLongInt(9)),
    ] {
        headers.insert(name.into(), value);
    }
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_message_id("m-1".into())
        .with_correlation_id("c-1".into())
        .with_timestamp(1_700_000_000)
        .with_user_id("guest".into())
        .with_expiration("60000".into())
        .with_delivery_mode(1)
        .with_headers(headers.clone());
    let bytes = b" {\"paymentId\":\"transient\",\"userId\":\"u\",\"integral\":1,\"note\":\"\xe6\x94\xaf\"}\n".to_vec();
    client.publish(&setup.exchange, &setup.key, [(bytes.clone(), properties)]);

    // The first daemon's copy is moved by hand to where it would go in an hour; another daemon takes it from there.
    for (attempt, queue) in [(1, setup.retry_queue("1h")), (2, setup.retry_queue("2h"))] {
        eventually("a copy waits", || client.ready(&queue)?.eq(&1).then_some(()));
        let copy = client.take(&queue).unwrap();
        assert_eq!(copy.delivery.data, bytes);
        let given = &copy.delivery.properties;
        let mut expected = FieldTable::default();
        for name in ["trace", "n", "at", "bytes"] {
            expected.insert(name.into(), headers.inner()[name].clone());
        }
        let own = given.headers().as_ref().unwrap().inner();
        for name in ["x-pointsd-error", "x-pointsd-first-failed-at"] {
            expected.insert(name.into(), own[name].clone());
        }
        // The broker's own count of the deliveries from this queue.
        if let Some(count) = own.get("x-delivery-count") {
            assert_eq!(*count, AMQPValue::LongLongInt(0));
            expected.insert("x-delivery-count".into(), count.clone());
        }
        expected.insert("x-pointsd-attempt".into(), AMQPValue::LongLongInt(attempt));
        let source = AMQPValue::LongString(setup.credit_queue.as_str().into());
        expected.insert("x-pointsd-source-queue".into(), source);
        let expected = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_message_id("m-1".into())
            .with_correlation_id("c-1".into())
            .with_timestamp(1_700_000_000)
            .with_delivery_mode(2)
            .with_headers(expected);
        assert_eq!(*given, expected);
        if attempt == 1 {
            daemon.stop();
            daemon = start(&setup, delays);
            client.publish("", &setup.credit_queue, [(copy.delivery.data.clone(), given.clone())]);
        }
    }
    daemon.stop();
}

#[test]
fn a_row_that_is_locked_for_a_minute_holds_up_only_its_own_payment() {
    let place = Place::new(Kind::Postgres);
    place.open().migrate().unwrap();
    place.execute("INSERT INTO points_balances (user_id, balance) VALUES ('locked', 0)");
    let DatabaseUrl::Postgres(url) = place.parsed() else { panic!() };
    let mut held = PgConnection::establish(&url).unwrap();
    held.batch_execute("BEGIN; UPDATE points_balances SET balance = 0 WHERE user_id = 'locked'").unwrap();
    let locked_at = std::time::Instant::now();
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    assert!(setup.run(&["topology", "declare"]).status.success());
    let client = Client::connect(&rabbit::shared().url());
    let bodies = (0..200).map(|n| {
        let payment = format!("p{n}");
        (body(&payment, if n == 77 { "locked" } else { "u" }), BasicProperties::default())
    });
    client.publish(&setup.exchange, &setup.key, bodies);
    let daemon = start(&setup, r#"["5s", "20s", "20s", "20s", "20s"]"#);
    let balance = |user: &str| setup.json(&["balance", user, "--json"])["balance"].clone();
    eventually("the others are credited", || (balance("u") == 199).then_some(()));
    assert!(locked_at.elapsed() < Duration::from_secs(50), "while the row is locked");
    daemon.wait_for("it takes delayed retries", |daemon| logged(daemon, "message delayed").len().ge(&2).then_some(()));
    assert_eq!(daemon.get("/readyz").unwrap().0, 200);
    std::thread::sleep(Duration::from_secs(60).saturating_sub(locked_at.elapsed()));
    assert_eq!(balance("locked"), 0);
    drop(held);
    eventually("it is credited", || (balance("locked") == 1).then_some(()));
    assert!(logged(&daemon, "paused").is_empty(), "no outage: {}", daemon.log());
    assert!(logged(&daemon, "message delayed").iter().all(|(_, line)| line["payment_id"] == "p77"));
    assert_eq!(client.ready(&setup.dead_queue), Some(0));
    daemon.stop();
}

#[test]
fn a_delay_queue_that_is_deleted_is_declared_again_and_loses_nothing() {
    let place = failing_ledger();
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let daemon = start(&setup, r#"["1s", "1h"]"#);
    let client = Client::connect(&rabbit::shared().url());
    client.delete_queue(&setup.retry_queue("1s"));
    let messages = ["a", "transient", "b"].map(|payment| (body(payment, "u"), BasicProperties::default()));
    client.publish(&setup.exchange, &setup.key, messages);
    daemon.wait_for("it has noticed", |daemon| daemon.log().contains("reached no queue").then_some(()));
    eventually("it took both steps", || client.ready(&setup.never_used())?.eq(&1).then_some(()));
    eventually("the others are credited", || setup.json(&["balance", "u", "--json"])["balance"].eq(&2).then_some(()));
    daemon.wait_ready();
    assert_eq!(client.ready(&setup.credit_queue), Some(0));
    daemon.stop();
}

#[test]
fn a_delay_that_is_taken_out_leaves_a_queue_that_can_be_retired() {
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let with = |delays: &str, arguments: &[&str]| {
        setup.command(arguments).env("POINTSD_RETRY__DELAYS", delays).output().unwrap()
    };
    assert!(with(r#"["2s", "1h"]"#, &["topology", "declare"]).status.success());
    let client = Client::connect(&rabbit::shared().url());
    let old = setup.retry_queue("2s");
    let mut flow = Flow::new(21);
    client.publish("", &old, flow.bodies(30));

    let refused = with(r#"["2s"]"#, &["topology", "retire", &old]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is in use"), "{refused:?}");
    for other in [setup.dead_queue.as_str(), "somebody.elses"] {
        assert_eq!(with(r#"["1h"]"#, &["topology", "retire", other]).status.code(), Some(1));
    }
    let retired = with(r#"["1h"]"#, &["topology", "retire", &old]);
    assert!(retired.status.success(), "{retired:?}");
    assert_eq!(client.ready(&old), None, "it is gone");
    assert_eq!(client.ready(&setup.credit_queue), Some(30), "and what waited in it went on");
    work_off(&client, &setup, setup.start());
    flow.assert_credited_once(&client, &setup);
}

#[test]
fn a_text_that_the_databases_encoding_cannot_hold_is_rejected_at_once() {
    let owner = crate::support::postgres::shared().database();
    let server = owner.rsplit_once('/').unwrap().0;
    let name = crate::support::unique("latin").replace('-', "_");
    crate::support::postgres::Postgres::execute(
        &owner,
        &format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'"),
    );
    let setup = Setup::new(&rabbit::shared().url(), &format!("{server}/{name}"), "");
    let daemon = setup.start();
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    let bodies = [body("a", "u"), body("b", "euro-€"), body("ł", "u"), body("é", "u")];
    client.publish(&setup.exchange, &setup.key, bodies.map(|body| (body, BasicProperties::default())));
    eventually("two are parked", || client.ready(&setup.dead_queue)?.eq(&2).then_some(()));
    daemon.wait_for("two are credited", |daemon| {
        daemon.metric(r#"pointsd_messages_total{queue="credit",outcome="credited"}"#).eq(&2.0).then_some(())
    });
    let parked = client.take(&setup.dead_queue).unwrap();
    assert_eq!(text(&parked, "x-pointsd-reason"), Some("rejected".into()));
    let error = text(&parked, "x-pointsd-error").unwrap();
    assert!(error.contains("encoding") && !error.contains("0x"), "{error}");
    assert_eq!(client.ready(&setup.never_used()), Some(0), "no retry step was taken");
    daemon.stop();
}
