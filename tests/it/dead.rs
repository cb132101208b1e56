//! The dead queue: seen, understood, sent back, exported, dropped; and nothing lost on the way.

use crate::{
    operations::{nested_headers, publish_raw},
    support::{
        amqp::{Client, text},
        daemon::{Daemon, Setup, told},
        eventually,
        flow::{Dice, work_off},
        ledger::{Kind, Place},
        rabbit,
    },
};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use std::{
    collections::HashSet,
    io::Write,
    process::{Output, Stdio},
    time::{Duration, Instant},
};

fn body(payment: &str, user: &str, points: u32) -> Vec<u8> {
    format!(r#"{{"paymentId":"{payment}","userId":"{user}","integral":{points}}}"#).into_bytes()
}

/// A broker and a ledger with everything declared, and no daemon.
fn prepared(kind: Kind, more: &str) -> (Place, Setup, Client) {
    let place = Place::new(kind);
    place.open().migrate().unwrap();
    let setup = Setup::new(&rabbit::shared().url(), &place.url, more);
    assert!(setup.run(&["topology", "declare"]).status.success());
    (place, setup, Client::connect(&rabbit::shared().url()))
}

fn table(entries: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert((*name).into(), value.clone());
    }
    table
}

fn long(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// What the daemon parks: a message with the marks of a failure.
fn parked(setup: &Setup, payment: &str, reason: &str, failed_at: &str) -> (Vec<u8>, BasicProperties) {
    let headers = table(&[
        ("trace", long("t-1")),
        ("x-pointsd-reason", long(reason)),
        ("x-pointsd-error", long(&format!("why {payment}"))),
        ("x-pointsd-source-queue", long(&setup.credit_queue)),
        ("x-pointsd-first-failed-at", long(failed_at)),
        ("x-pointsd-attempt", AMQPValue::LongLongInt(2)),
    ]);
    let properties = BasicProperties::default()
        .with_message_id(format!("m-{payment}").into())
        .with_delivery_mode(2)
        .with_headers(headers);
    (body(payment, "u", 1), properties)
}

const LONG_AGO: &str = "2020-01-01T00:00:00Z";

fn park(client: &Client, setup: &Setup, payments: impl IntoIterator<Item = String>, reason: &str) {
    let messages: Vec<_> = payments.into_iter().map(|payment| parked(setup, &payment, reason, LONG_AGO)).collect();
    client.publish("", &setup.dead_queue, messages);
}

fn ready_is(client: &Client, queue: &str, count: u32) {
    eventually(&format!("{queue} has {count} messages"), || client.ready(queue)?.eq(&count).then_some(()));
}

fn account(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", told(output)))
}

fn audit(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("dead queue") && line.contains("who=")).collect();
    // What removes messages has told so before the first of them.
    let changes = lines[0].contains(r#"action="requeue""#) || lines[0].contains(r#"action="drop""#);
    assert_eq!(lines.len(), if changes { 2 } else { 1 }, "{text}");
    assert!(!changes || lines[0].contains(r#"end="begun""#), "{text}");
    lines[lines.len() - 1].to_owned()
}

#[test]
fn what_is_parked_is_counted_listed_and_shown_with_what_the_ledger_says() {
    let (_place, setup, client) = prepared(Kind::Sqlite, "");
    let daemon = setup.start();
    daemon.wait_ready();
    let messages = [
        (body("p1", "u", 5), BasicProperties::default()),
        (body("p1", "other", 5), BasicProperties::default().with_message_id("m-c".into())),
        (b"secret-looking \x1b[31mtext".to_vec(), BasicProperties::default().with_message_id("m-t".into())),
        (b"\xac\xed\x00\x05".to_vec(), BasicProperties::default()),
    ];
    // One after the other: which of two is parked first would be chance.
    for (message, parked) in messages.into_iter().zip([0, 1, 2, 3]) {
        client.publish(&setup.exchange, &setup.key, [message]);
        ready_is(&client, &setup.dead_queue, parked);
        eventually("it is settled", || {
            (client.ready(&setup.credit_queue) == Some(0)
                && daemon.metric(r#"pointsd_in_flight{queue="credit"}"#) == 0.0)
                .then_some(())
        });
    }
    daemon.stop();

    let listed = setup.json(&["dead", "list", "--json"]);
    assert_eq!((&listed["queue"], &listed["messages"]), (&setup.dead_queue.as_str().into(), &3.into()));
    assert_eq!((&listed["groups"][0]["reason"], &listed["groups"][0]["messages"]), (&"malformed".into(), &2.into()));
    assert_eq!((&listed["groups"][1]["reason"], &listed["groups"][1]["messages"]), (&"conflict".into(), &1.into()));
    let errors = listed["groups"][0]["errors"].as_array().unwrap();
    let told_errors: Vec<_> =
        errors.iter().map(|error| (&error["messages"], error["error"].as_str().unwrap())).collect();
    assert_eq!(told_errors.len(), 2, "{listed}");
    assert!(
        told_errors.iter().all(|(messages, error)| **messages == 1 && error.starts_with("body is not")),
        "{listed}"
    );
    let text = told(&setup.run(&["dead", "list"]));
    assert!(text.contains(&format!("       1    {}  (oldest ", told_errors[0].1)), "{text}");
    assert!(text.contains("2  malformed") && text.contains("first: body is not JSON"), "{text}");

    let each = setup.json(&["dead", "list", "--each", "--json"]);
    assert_eq!(each["each"].as_array().unwrap().len(), 3);
    let one = setup.json(&["dead", "list", "--each", "--json", "--payment", "p1"]);
    assert_eq!((&one["messages"], &one["each"][0]["message_id"]), (&1.into(), &"m-c".into()));
    assert_eq!(one["each"][0]["source_queue"], setup.credit_queue.as_str());
    assert!(told(&setup.run(&["dead", "list", "--each"])).contains("payment p1  message m-c"));

    let shown = setup.json(&["dead", "show", "--reason", "conflict", "--json"]);
    let shown = &shown[0];
    assert_eq!((&shown["message"]["user_id"], &shown["message"]["points"]), (&"other".into(), &5.into()));
    assert_eq!((&shown["ledger"]["user_id"], &shown["ledger"]["points"]), (&"u".into(), &5.into()), "then");
    assert_eq!(
        (&shown["ledger_now"]["record"]["user_id"], &shown["ledger_now"]["record"]["points"]),
        (&"u".into(), &5.into())
    );
    assert_eq!(shown["headers"]["x-pointsd-reason"], "conflict");
    let text = told(&setup.run(&["dead", "show", "--reason", "conflict"]));
    for part in
        ["the message     user other, 5 points", "the ledger then user u, 5 points", "the ledger now  user u, 5 points"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let malformed = setup.run(&["dead", "show", "--reason", "malformed"]);
    let text = told(&malformed);
    assert!(text.contains("secret-looking \\u{1b}[31mtext") && text.contains("rO0ABQ=="), "{text}");
    assert!(!String::from_utf8_lossy(&malformed.stderr).contains("secret-looking"), "bodies are not in the audit");
    assert!(audit(&malformed).contains(r#"action="show""#) && audit(&malformed).contains("selected=2"));

    assert_eq!(setup.run(&["dead", "show", "--payment", "nobody"]).status.code(), Some(1));
    // A ledger that cannot be asked hides no message.
    let blind =
        setup.command(&["dead", "show", "--payment", "p1"]).env("POINTSD_LEDGER__URL", "sqlite:/none/x.db").output();
    let blind = blind.unwrap();
    assert!(blind.status.success() && told(&blind).contains("the ledger now  not asked"), "{}", told(&blind));
    ready_is(&client, &setup.dead_queue, 3);
}

#[test]
fn what_is_sent_back_begins_anew_in_the_queue_that_it_came_from() {
    let (_place, setup, client) = prepared(Kind::Sqlite, "");
    park(&client, &setup, ["a".into(), "b".into()], "rejected");
    park(&client, &setup, ["c".into()], "exhausted");
    client.publish("", &setup.dead_queue, [parked(&setup, "young", "rejected", &jiff::Timestamp::now().to_string())]);

    let dry = setup.run(&["dead", "requeue", "--reason", "rejected", "--dry-run"]);
    assert!(dry.status.success() && told(&dry).contains("would send 3 messages"), "{}", told(&dry));
    ready_is(&client, &setup.dead_queue, 4);
    assert_eq!(client.ready(&setup.credit_queue), Some(0));

    let sent = setup.run(&["dead", "requeue", "--reason", "rejected", "--older-than", "1h", "--limit", "1", "--json"]);
    assert!(sent.status.success(), "{}", told(&sent));
    let account = account(&sent);
    assert_eq!((&account["selected"], &account["sent"], &account["returned"]), (&1.into(), &1.into(), &0.into()));
    let line = audit(&sent);
    for part in
        [r#"action="requeue""#, "who=\"", "reason rejected, older than 1h", "selected=1", "removed=1", r#"end="done""#]
    {
        assert!(line.contains(part), "{part}: {line}");
    }
    let requeue_id = account["requeue_id"].as_str().unwrap();
    assert!(line.contains(requeue_id));
    ready_is(&client, &setup.credit_queue, 1);
    let back = client.take(&setup.credit_queue).unwrap();
    assert_eq!(back.delivery.data, body("a", "u", 1));
    let mut headers = back.delivery.properties.headers().clone().unwrap().inner().clone();
    headers.remove("x-delivery-count");
    let expected = table(&[("trace", long("t-1")), ("x-pointsd-requeue-id", long(requeue_id))]);
    assert_eq!(headers, *expected.inner());
    assert_eq!(*back.delivery.properties.message_id(), Some("m-a".into()));
    ready_is(&client, &setup.dead_queue, 3);

    let newer = setup.run(&["dead", "requeue", "--newer-than", "1h"]);
    assert!(newer.status.success(), "{}", told(&newer));
    ready_is(&client, &setup.credit_queue, 1);
    assert_eq!(client.take(&setup.credit_queue).unwrap().delivery.data, body("young", "u", 1));
    for wrong in [
        &["dead", "requeue"][..],
        &["dead", "requeue", "--all", "--reason", "rejected"],
        &["dead", "requeue", "--reason", "no-such-reason"],
        &["dead", "requeue", "--all", "--rate", "0"],
        &["dead", "drop", "--yes"],
    ] {
        let output = setup.run(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {}", told(&output));
    }
    ready_is(&client, &setup.dead_queue, 2);
}

#[test]
fn ages_are_judged_by_the_clock_of_the_ledgers_database() {
    let (place, setup, client) = prepared(Kind::Postgres, "");
    let failed = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(1);
    client.publish("", &setup.dead_queue, [parked(&setup, "a", "rejected", &failed.to_string())]);
    let drop = ["dead", "drop", "--older-than", "2h", "--yes", "--json"];
    assert_eq!(setup.json(&drop)["dropped"], 0);
    // A database whose clock is two hours ahead of this machine's.
    place.execute(
        "CREATE FUNCTION clock_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT pg_catalog.clock_timestamp() + interval ''2h''';
         DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_catalog', current_database()); END $$",
    );
    // Nothing is dropped by a guess.
    let unasked = setup.command(&drop).env("POINTSD_LEDGER__URL", "postgres://nobody@127.0.0.1:1/x").output().unwrap();
    assert!(!unasked.status.success() && told(&unasked).contains("the ledger's clock"), "{}", told(&unasked));
    let dropped = setup.run(&drop);
    assert_eq!(account(&dropped)["dropped"], 1, "{}", told(&dropped));
    assert!(told(&dropped).contains("the ledger's clock differs from this machine's by +7"), "{}", told(&dropped));
}

#[test]
fn a_requeue_stops_when_what_it_sends_comes_back_and_takes_nothing_twice() {
    let (_place, setup, client) = prepared(Kind::Sqlite, "");
    let daemon = setup.start();
    daemon.wait_ready();
    let bad = |n: usize| (format!("bad {n}").into_bytes(), BasicProperties::default());
    client.publish(&setup.exchange, &setup.key, (0..300).map(bad));
    ready_is(&client, &setup.dead_queue, 300);

    let stopped = setup.run(&["dead", "requeue", "--all", "--json"]);
    assert_eq!(stopped.status.code(), Some(1), "{}", told(&stopped));
    let told_of = account(&stopped);
    assert_eq!((&told_of["selected"], &told_of["sent"]), (&300.into(), &10.into()), "the canaries, and no more");
    assert!(told_of["stopped"].as_str().unwrap().contains("comes back: malformed: body is not JSON"), "{told_of}");
    ready_is(&client, &setup.dead_queue, 300);

    let all = setup.run(&["dead", "requeue", "--all", "--canary", "0", "--keep-going", "--json"]);
    assert_eq!(all.status.code(), Some(1), "{}", told(&all));
    let told_of = account(&all);
    assert_eq!((&told_of["selected"], &told_of["sent"]), (&300.into(), &300.into()), "each of them once");
    assert!(told_of["returned"].as_u64().unwrap() > 0 && told_of["stopped"].is_null(), "{told_of}");
    ready_is(&client, &setup.dead_queue, 300);
    let parked = daemon.metric(r#"pointsd_dead_lettered_total{reason="malformed"}"#);
    assert_eq!(parked, 610.0, "300 at first, 10 canaries, 300 again");
    daemon.stop();
}

#[test]
fn a_requeue_that_is_killed_at_random_moments_loses_nothing() {
    const MESSAGES: u32 = 3000;
    let (_place, setup, client) = prepared(Kind::Postgres, "");
    let daemon = setup.start();
    daemon.wait_ready();
    park(&client, &setup, (0..MESSAGES).map(|n| format!("p{n}")), "rejected");
    let mut dice = Dice::new(61);
    let (mut struck, mut tries) = (0, 0);
    while struck < 5 {
        tries += 1;
        assert!(tries < 40, "only {struck} of {tries} kills struck");
        let before = client.ready(&setup.dead_queue).unwrap();
        let mut requeue = setup.command(&["dead", "requeue", "--all", "--canary", "0", "--rate", "500"]);
        let mut requeue = requeue.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(300 + dice.below(1200)));
        requeue.kill().unwrap();
        requeue.wait().unwrap();
        // Everything that it held comes back when the broker has noticed.
        let left = settled(&client, &setup.dead_queue);
        daemon.wait_for("what was sent is credited", |_| client.ready(&setup.credit_queue)?.eq(&0).then_some(()));
        daemon.wait_for("all are credited or still parked", |_| {
            let credited = setup.json(&["balance", "u", "--json"])["balance"].as_u64()?;
            // What the killed command held may come back late on a busy machine.
            let left = client.ready(&setup.dead_queue)?;
            (credited + u64::from(left) >= u64::from(MESSAGES)).then_some(())
        });
        struck += u32::from(left < before && left > 0);
        if left < 300 {
            park(&client, &setup, (0..MESSAGES).map(|n| format!("p{n}")), "rejected");
        }
    }
    let rest = setup.run(&["dead", "requeue", "--all"]);
    assert!(rest.status.success(), "{}", told(&rest));
    work_off(&client, &setup, daemon);
    ready_is(&client, &setup.dead_queue, 0);
    assert_eq!(setup.json(&["balance", "u", "--json"])["balance"], MESSAGES, "each of them once");
    assert_eq!(setup.json(&["verify", "--json"])["credits"], MESSAGES);
}

/// How many messages are ready, once that number stands still.
fn settled(client: &Client, queue: &str) -> u32 {
    let (mut last, mut since) = (client.ready(queue).unwrap(), Instant::now());
    while since.elapsed() < Duration::from_millis(300) {
        std::thread::sleep(Duration::from_millis(30));
        let now = client.ready(queue).unwrap();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    last
}

#[test]
fn a_message_that_the_broker_moved_goes_back_to_the_queue_in_which_it_died() {
    let (_place, setup, client) = prepared(Kind::Sqlite, "delivery_limit = 2");
    client.publish(&setup.exchange, &setup.key, [(body("p", "u", 1), BasicProperties::default())]);
    eventually("it has been delivered too often", || {
        client.take_and_return(&setup.credit_queue);
        client.ready(&setup.dead_queue)?.eq(&1).then_some(())
    });
    let listed = setup.json(&["dead", "list", "--each", "--json"]);
    let message = &listed["each"][0];
    assert_eq!(
        (&message["reason"], &message["source_queue"]),
        (&"delivery_limit".into(), &setup.credit_queue.as_str().into())
    );
    assert!(message["first_failed_at"].is_string() && message["payment_id"] == "p", "{message}");
    let sent = setup.run(&["dead", "requeue", "--reason", "delivery_limit"]);
    assert!(sent.status.success(), "{}", told(&sent));
    let daemon = setup.start();
    daemon.wait_ready();
    eventually("it is credited", || setup.json(&["balance", "u", "--json"])["balance"].eq(&1).then_some(()));
    daemon.stop();
}

#[test]
fn what_cannot_be_sent_back_is_told_and_stays_and_the_rest_goes() {
    let (_place, setup, client) = prepared(Kind::Sqlite, "");
    park(&client, &setup, ["good".into()], "rejected");
    let (bytes, properties) = parked(&setup, "gone", "rejected", LONG_AGO);
    let mut headers = properties.headers().clone().unwrap();
    headers.insert("x-pointsd-source-queue".into(), long("no.such.queue"));
    client.publish("", &setup.dead_queue, [(bytes, properties.with_headers(headers))]);
    // There, and takes nothing.
    let full = crate::support::unique("full");
    client.declare_queue(&full, &[("x-max-length", AMQPValue::LongLongInt(0)), ("x-overflow", long("reject-publish"))]);
    let (bytes, properties) = parked(&setup, "refused", "rejected", LONG_AGO);
    let mut headers = properties.headers().clone().unwrap();
    headers.insert("x-pointsd-source-queue".into(), long(&full));
    client.publish("", &setup.dead_queue, [(bytes, properties.with_headers(headers))]);
    client.publish("", &setup.dead_queue, [(b"foreign".to_vec(), BasicProperties::default())]);
    let sent = setup.run(&["dead", "requeue", "--all"]);
    assert_eq!(sent.status.code(), Some(1));
    let text = told(&sent);
    assert!(text.contains("is not there: no.such.queue") && text.contains("nothing says which queue"), "{text}");
    assert!(
        text.contains("the broker refused 1 of 1 messages to queue") && text.contains("sent 1 of 2 messages back"),
        "{text}"
    );
    ready_is(&client, &setup.credit_queue, 1);
    ready_is(&client, &setup.dead_queue, 3);
    assert_eq!(setup.json(&["dead", "list", "--reason", "unknown", "--json"])["messages"], 1);
}

/// A policy's limit, which AMQP does not show.
#[test]
fn no_number_of_looks_uses_up_a_delivery_limit_that_a_policy_sets() {
    let (_place, setup, client) = prepared(Kind::Sqlite, "delivery_limit = 2");
    let producer = BasicProperties::default().with_message_id("m-moved".into());
    client.publish(&setup.exchange, &setup.key, [(body("moved", "u", 1), producer)]);
    eventually("it has been delivered too often", || {
        client.take_and_return(&setup.credit_queue);
        client.ready(&setup.dead_queue)?.eq(&1).then_some(())
    });
    park(&client, &setup, (0..20).map(|n| format!("p{n}")), "rejected");
    let policy = ["set_policy", &setup.dead_queue, &format!("^{}$", setup.dead_queue), r#"{"delivery-limit":3}"#];
    rabbit::shared().ctl(&[&policy[..], &["--apply-to", "queues"]].concat());
    let first = setup.json(&["dead", "list", "--each", "--json"]);
    let by_id = |listed: &serde_json::Value| {
        let mut each = listed["each"].as_array().unwrap().clone();
        each.sort_by_key(|message| message["message_id"].to_string());
        each
    };
    assert_eq!(by_id(&first).len(), 21);
    for look in 0..12 {
        match look % 4 {
            0 => {
                // A look that dies while it holds them: the broker counts that, too.
                let other = Client::connect(&rabbit::shared().url());
                assert_eq!(other.hold(&setup.dead_queue, 100), 21);
                drop(other);
                ready_is(&client, &setup.dead_queue, 21);
            }
            1 => assert!(setup.run(&["dead", "show", "--limit", "3"]).status.success()),
            2 => assert!(setup.run(&["dead", "requeue", "--all", "--dry-run"]).status.success()),
            _ => assert!(setup.run(&["dead", "export"]).status.success()),
        }
        let listed = setup.run(&["dead", "list", "--each", "--json"]);
        assert!(listed.status.success(), "look {look}: {}", told(&listed));
        assert_eq!(by_id(&account(&listed)), by_id(&first), "look {look}: {}", told(&listed));
        ready_is(&client, &setup.dead_queue, 21);
    }
    // What the broker said of the one that it has moved is still known, and where that goes back to.
    assert!(setup.run(&["dead", "requeue", "--reason", "delivery_limit"]).status.success());
    ready_is(&client, &setup.credit_queue, 1);
}

/// The least limit there is: each delivery that is given back is dropped. It cannot be looked at, but it is not silent.
#[test]
fn messages_that_vanish_in_a_look_are_counted() {
    let (_place, setup, client) = prepared(Kind::Sqlite, "");
    client.delete_queue(&setup.dead_queue);
    client.declare_queue(
        &setup.dead_queue,
        &[("x-queue-type", long("quorum")), ("x-delivery-limit", AMQPValue::LongLongInt(0))],
    );
    park(&client, &setup, ["a".into(), "b".into()], "rejected");
    let listed = setup.run(&["dead", "list"]);
    assert_eq!(listed.status.code(), Some(1), "{}", told(&listed));
    assert!(told(&listed).contains("2 messages vanished from the dead queue"), "{}", told(&listed));
}

#[test]
fn headers_that_fill_a_frame_or_a_stack_hinder_nobody() {
    let (_place, setup, client) = prepared(Kind::Sqlite, "");
    let daemon = setup.start();
    daemon.wait_ready();
    // As much as the broker lets in, less and less: some of these fill the frame when ours are added to them.
    for spare in [40, 150, 200, 300, 400, 600, 1000, 2000, 4000] {
        let headers = table(&[("long", long(&"x".repeat(131_072 - 40 - spare)))]);
        let properties = BasicProperties::default().with_headers(headers);
        client.publish(&setup.exchange, &setup.key, [(b"bad".to_vec(), properties)]);
    }
    publish_raw(rabbit::shared().port, "", &setup.dead_queue, 0x2000, &nested_headers(20_000));
    ready_is(&client, &setup.dead_queue, 10);
    // The first look leaves a mark of the broker's on each of them.
    for _ in 0..2 {
        assert_eq!(setup.json(&["dead", "list", "--json"])["messages"], 10);
        // What was looked at is back when the broker has taken it back.
        ready_is(&client, &setup.dead_queue, 10);
    }
    let shown = setup.json(&["dead", "show", "--reason", "unknown", "--json"]);
    ready_is(&client, &setup.dead_queue, 10);
    assert!(shown[0]["headers"]["deep"].is_array(), "{shown}");
    let file = setup.folder.path().join("dead.jsonl");
    let exported = setup.run(&["dead", "export", file.to_str().unwrap()]);
    assert!(exported.status.success(), "{}", told(&exported));
    let published = setup.run(&["publish", file.to_str().unwrap(), "--json"]);
    assert!(account(&published)["published"].as_u64().unwrap() >= 1, "{}", told(&published));
    daemon.wait_ready();
    daemon.stop();
    let dropped = setup.run(&["dead", "drop", "--all", "--yes"]);
    assert!(dropped.status.success(), "{}", told(&dropped));
    ready_is(&client, &setup.dead_queue, 0);
}

#[test]
fn a_look_that_did_not_see_everything_says_so() {
    let (_place, setup, client) = prepared(Kind::Sqlite, "");
    park(&client, &setup, (0..3000).map(|n| format!("p{n}")), "rejected");
    // Two at a time: each takes what the other would have seen.
    let export = || setup.command(&["dead", "export"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (one, other) = (export(), export());
    for output in [one.wait_with_output().unwrap(), other.wait_with_output().unwrap()] {
        let lines = String::from_utf8_lossy(&output.stdout).lines().count();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(lines == 3000 || said.contains("other reader"), "{lines}: {said}");
        let whole = lines == 3000 && !said.contains("other reader");
        assert_eq!(output.status.success(), whole, "{lines}: {said}");
    }
    ready_is(&client, &setup.dead_queue, 3000);
}

#[test]
fn a_hundred_looks_drop_nothing() {
    let (_place, setup, client) = prepared(Kind::Sqlite, "");
    park(&client, &setup, (0..20).map(|n| format!("p{n}")), "rejected");
    for look in 0..100 {
        let listed = setup.json(&["dead", "list", "--json"]);
        assert_eq!(listed["messages"], 20, "look {look}");
        ready_is(&client, &setup.dead_queue, 20);
    }
}

/// A look renews what an earlier one has seen: its copies arrive while it goes on, through several consumers, and in no order.
/// Each message is counted once, and a copy never stands for one that was not seen yet.
#[test]
fn looks_that_renew_what_they_see_count_each_message_once() {
    const MESSAGES: usize = 12_000;
    let (_place, setup, client) = prepared(Kind::Sqlite, "");
    park(&client, &setup, (0..MESSAGES).map(|n| format!("p{n}")), "rejected");
    for look in 0..4 {
        let file = setup.folder.path().join(format!("export-{look}"));
        assert!(setup.run(&["dead", "export", file.to_str().unwrap()]).status.success());
        let text = std::fs::read_to_string(&file).unwrap();
        let body = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["body"].to_string();
        let bodies: HashSet<String> = text.lines().map(body).collect();
        assert_eq!((text.lines().count(), bodies.len()), (MESSAGES, MESSAGES), "look {look}");
        ready_is(&client, &setup.dead_queue, u32::try_from(MESSAGES).unwrap());
    }
}

/// More than RabbitMQ lets one consumer hold, and of three reasons in turn: what is selected lies between what is not.
fn a_long_dead_queue(queue_type: &str) {
    const MESSAGES: u32 = 100_000;
    let (_place, setup, client) = prepared(Kind::Sqlite, &format!("queue_type = {queue_type:?}"));
    let daemon = setup.start();
    daemon.wait_ready();
    let reasons = [
        "rejected",
        "conflict",
        "rejected",
        "conflict",
        "rejected",
        "exhausted",
        "rejected",
        "conflict",
        "rejected",
        "rejected",
    ];
    for part in 0..10 {
        let messages = (0..MESSAGES / 10).map(|n| {
            let payment = format!("p{}", part * (MESSAGES / 10) + n);
            parked(&setup, &payment, reasons[n as usize % 10], LONG_AGO)
        });
        client.publish("", &setup.dead_queue, messages);
    }
    let begun = Instant::now();
    let sent = setup.run(&["dead", "requeue", "--reason", "rejected", "--json"]);
    let told_of = account(&sent);
    assert_eq!((&told_of["sent"], &told_of["uncertain"]), (&60_000.into(), &0.into()), "{}", told(&sent));
    assert!(sent.status.success() && begun.elapsed() < Duration::from_secs(120), "{:?}", begun.elapsed());
    assert!(audit(&sent).contains("selected=60000 removed=60000"), "{}", told(&sent));
    ready_is(&client, &setup.dead_queue, 40_000);
    let begun = Instant::now();
    let dropped = setup.run(&["dead", "drop", "--reason", "conflict", "--yes", "--json"]);
    assert_eq!(account(&dropped)["dropped"], 30_000, "{}", told(&dropped));
    assert!(dropped.status.success() && begun.elapsed() < Duration::from_secs(120), "{:?}", begun.elapsed());
    ready_is(&client, &setup.dead_queue, 10_000);
    let listed = setup.json(&["dead", "list", "--json"]);
    assert_eq!((&listed["groups"][0]["reason"], &listed["messages"]), (&"exhausted".into(), &10_000.into()));
    daemon.wait_for("they are credited", |daemon: &Daemon| {
        daemon.metric("pointsd_points_credited_total").eq(&60_000.0).then_some(())
    });
    let dropped = setup.run(&["dead", "drop", "--all", "--yes", "--json"]);
    assert_eq!(account(&dropped)["dropped"], 10_000, "{}", told(&dropped));
    ready_is(&client, &setup.dead_queue, 0);
    daemon.stop();
}

#[test]
fn a_dead_queue_of_a_hundred_thousand_is_looked_through_sent_back_and_dropped() {
    a_long_dead_queue("quorum");
}

#[test]
fn a_classic_dead_queue_of_a_hundred_thousand_is_looked_through_sent_back_and_dropped() {
    a_long_dead_queue("classic");
}

#[test]
fn bodies_that_do_not_fit_into_memory_are_sent_in_rounds() {
    let (_place, setup, client) = prepared(Kind::Sqlite, "");
    let large = "x".repeat(1024 * 1024);
    for n in 0..90 {
        let (_, properties) = parked(&setup, &n.to_string(), "rejected", LONG_AGO);
        client.publish("", &setup.dead_queue, [(format!("{n} {large}").into_bytes(), properties)]);
    }
    let sent = setup.run(&["dead", "requeue", "--all", "--canary", "0", "--json"]);
    assert!(sent.status.success(), "{}", told(&sent));
    assert_eq!(account(&sent)["sent"], 90);
    ready_is(&client, &setup.dead_queue, 0);
    ready_is(&client, &setup.credit_queue, 90);
    let mut numbers: Vec<u32> = client
        .drain(&setup.credit_queue)
        .iter()
        .map(|message| String::from_utf8_lossy(&message.delivery.data).split(' ').next().unwrap().parse().unwrap())
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..90).collect::<Vec<_>>(), "each of them once");
}

#[test]
fn a_rate_is_kept_and_ctrl_c_leaves_the_rest_where_it_is() {
    let (_place, setup, client) = prepared(Kind::Sqlite, "");
    park(&client, &setup, (0..300).map(|n| format!("p{n}")), "rejected");
    let begun = Instant::now();
    let sent = setup.run(&["dead", "requeue", "--all", "--canary", "0", "--rate", "50", "--limit", "100"]);
    assert!(sent.status.success(), "{}", told(&sent));
    assert!(begun.elapsed() > Duration::from_millis(1700), "{:?}", begun.elapsed());
    ready_is(&client, &setup.dead_queue, 200);

    let mut command = setup.command(&["dead", "requeue", "--all", "--canary", "0", "--rate", "20", "--json"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("it has begun", || client.ready(&setup.credit_queue)?.gt(&110).then_some(()));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let account = account(&output);
    assert_eq!(account["stopped"], "interrupted");
    let sent = u32::try_from(account["sent"].as_u64().unwrap()).unwrap();
    assert!(audit(&output).contains(&format!("removed={sent} end=\"interrupted\"")));
    ready_is(&client, &setup.dead_queue, 200 - sent);
    ready_is(&client, &setup.credit_queue, 100 + sent);
}

#[test]
fn an_export_is_read_by_replay_and_publish_and_takes_nothing_away() {
    let (_place, setup, client) = prepared(Kind::Sqlite, "");
    park(&client, &setup, (0..5).map(|n| format!("p{n}")), "rejected");
    let binary = BasicProperties::default().with_message_id("m-b".into());
    client.publish("", &setup.dead_queue, [(b"\xff\x00\n".to_vec(), binary)]);
    let file = setup.folder.path().join("dead.jsonl");
    let path = file.to_str().unwrap();
    let exported = setup.run(&["dead", "export", path]);
    assert!(exported.status.success(), "{}", told(&exported));
    assert!(audit(&exported).contains("selected=6"));
    assert_eq!(setup.run(&["dead", "export", path]).status.code(), Some(1), "it writes over nothing");
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(text.lines().count(), 6);
    assert!(text.contains(r#""x-pointsd-reason":"rejected""#), "{text}");
    let to_stdout = setup.run(&["dead", "export", "--reason", "rejected"]);
    assert_eq!(String::from_utf8_lossy(&to_stdout.stdout).lines().count(), 5);
    ready_is(&client, &setup.dead_queue, 6);

    let replayed = setup.json(&["replay", path, "--json"]);
    assert_eq!((&replayed["credited"], &replayed["malformed"]), (&5.into(), &1.into()));
    let published = setup.json(&["publish", path, "--json"]);
    assert_eq!(published["published"], 6);
    ready_is(&client, &setup.credit_queue, 6);
    let messages = client.drain(&setup.credit_queue);
    assert_eq!(messages[0].delivery.data, body("p0", "u", 1));
    assert_eq!(messages[5].delivery.data, b"\xff\x00\n");
    assert_eq!(text_of(&messages[0], "trace"), Some("t-1".into()));
    assert_eq!(text_of(&messages[0], "x-pointsd-reason"), None, "a message that is published begins anew");
    assert_eq!(text_of(&messages[0], "x-pointsd-attempt"), None);
}

fn text_of(message: &lapin::message::BasicGetMessage, header: &str) -> Option<String> {
    message.delivery.properties.headers().as_ref()?;
    text(message, header)
}

#[test]
fn dropping_asks_first() {
    let (_place, setup, client) = prepared(Kind::Sqlite, "");
    park(&client, &setup, ["a".into(), "b".into()], "rejected");
    let unasked = setup.run(&["dead", "drop", "--all"]);
    assert_eq!(unasked.status.code(), Some(2));
    assert!(told(&unasked).contains("--yes"), "{}", told(&unasked));
    let script = crate::support::program("script", &["/usr/bin/script"], "bsdutils");
    let on_terminal = |answer: &str| {
        let command =
            format!("{} dead drop --payment a --config {}", crate::support::daemon::POINTSD, setup.config().display());
        let mut child = std::process::Command::new(&script)
            .args(["-qec", &command, "/dev/null"])
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(answer.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let refused = on_terminal("no\n");
    assert!(told(&refused).contains("dropped 0 of 1"), "{}", told(&refused));
    ready_is(&client, &setup.dead_queue, 2);
    let agreed = on_terminal("yes\n");
    assert!(told(&agreed).contains("dropped 1 of 1"), "{}", told(&agreed));
    ready_is(&client, &setup.dead_queue, 1);
    let dropped = setup.run(&["dead", "drop", "--message-id", "m-b", "--yes"]);
    assert!(dropped.status.success() && audit(&dropped).contains("removed=1"), "{}", told(&dropped));
    ready_is(&client, &setup.dead_queue, 0);
}
