//! What is a payment id, and what a message that cannot be credited still says of its payment.

use crate::{
    compensation,
    notifications::example,
    support::{
        amqp::{Client, check_entry, check_message},
        daemon::{Setup, told},
        ledger::{Kind, Place},
        payments::Payments,
        rabbit,
    },
};
use lapin::BasicProperties;
use std::time::SystemTime;

#[test]
fn a_document_is_parked_and_never_looked_up() {
    let shop = "CREATE TABLE pay_order (biz_order_no text PRIMARY KEY, status integer NOT NULL, biz_user_id text, \
                amount numeric(12, 2))";
    let example = example("direct-notification", Kind::Sqlite, shop, false);
    let documents = [
        ("<pay>7</pay>", "is markup (XML or HTML)"),
        ("paymentId=7&status=paid", "is form data or a name=value pair"),
        ("\"{\\\"paymentId\\\":7}\"", "is JSON within a string"),
        ("7,8", "is a list"),
        ("7\u{200b}", "has an invisible character"),
    ];
    // Each of them is a paid payment, too: a look-up would credit it.
    for (document, _) in &documents {
        let id: String = serde_json::from_str(document).unwrap_or_else(|_| (*document).to_owned());
        example.sql(&format!("INSERT INTO pay_order VALUES ('{id}', 1, 'wrong', 10)"));
    }
    example.sql("INSERT INTO pay_order VALUES ('7', 1, 'right', 10), ('8', 1, 'right', 20)");
    let daemon = example.start();
    let bodies = documents.iter().map(|(document, _)| *document).chain(["\u{feff}7", "\u{feff}\"8\""]);
    example.notify(&bodies.map(str::as_bytes).collect::<Vec<_>>());
    example.wait_for_points(&daemon, "right", 30);
    example.wait_for_dead(&daemon, 5);
    let mut dead = example.dead();
    for (_, problem) in &documents {
        let index = dead.iter().position(|(reason, _, error)| reason == "malformed" && error.contains(problem));
        dead.remove(index.unwrap_or_else(|| panic!("{problem}: {dead:?}")));
    }
    assert_eq!(example.points("wrong"), 0);
    daemon.stop();
}

#[test]
fn a_malformed_message_is_found_by_its_payment() {
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let daemon = setup.start();
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    let bodies = [
        r#"{"paymentId":"P-7","userId":"S3CRET","integral":0}"#,
        r#"{"paymentId":"P-8","userId":"S3CRET","#,
        r#"{"userId":"S3CRET","integral":1}"#,
    ];
    let messages = bodies.iter().map(|body| (body.as_bytes().to_vec(), BasicProperties::default()));
    client.publish(&setup.exchange, &setup.key, messages);
    daemon.wait_for("3 messages are parked", |_| client.ready(&setup.dead_queue)?.eq(&3).then_some(()));
    for payment in ["P-7", "P-8"] {
        let listed = setup.json(&["dead", "list", "--each", "--payment", payment, "--json"]);
        assert_eq!((&listed["messages"], &listed["each"][0]["payment_id"]), (&1.into(), &payment.into()), "{listed}");
        let output = setup.run(&["payment", payment]);
        assert!(output.status.success() && told(&output).contains("malformed"), "{}", told(&output));
    }
    let shown = told(&setup.run(&["dead", "show", "--payment", "P-7"]));
    assert!(shown.contains("malformed: payment P-7") && shown.contains("payment not found"), "{shown}");
    let log = daemon.log();
    assert!(
        log.contains("payment_id=\"P-7\"") && log.contains("payment_id=\"P-8\"") && !log.contains("S3CRET"),
        "{log}"
    );
    daemon.stop();
}

#[test]
fn a_check_that_cannot_be_read_is_found_by_its_payment_and_changes_nothing_of_it() {
    let (place, payments) = (Place::new(Kind::Sqlite), Payments::new());
    let setup = compensation::setup(&place, "sql", &payments.settings(), "1h", "[]");
    let daemon = compensation::start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    compensation::publish(&client, &setup, [9]);
    compensation::wait_for_state(&setup, &daemon, 9, &compensation::is("credited", false));
    let bad = check_message(&[check_entry("9", "S3CRET", 0)], 0);
    // A check message of ours, and a points message that another program's binding brings.
    let foreign = (br#"{"paymentId":9,"userId":"S3CRET","integral":0}"#.to_vec(), BasicProperties::default());
    client.publish("", &setup.check_queue, [bad, foreign]);
    let ignored = "malformed message in the check queue acknowledged";
    daemon.wait_for("one is parked, one acknowledged", |daemon| {
        let acknowledged = daemon.log().lines().any(|line| line.contains(ignored) && line.contains("payment_id=\"9\""));
        (acknowledged && client.ready(&setup.dead_queue)? == 1).then_some(())
    });
    let story = setup.json(&["payment", "9", "--json"]);
    assert_eq!(story["dead_queue"]["messages"][0]["reason"], "malformed", "{story}");
    assert_eq!((&story["state"], &story["asked_at"]), (&"credited".into(), &serde_json::Value::Null), "{story}");
    assert!(!daemon.log().contains("S3CRET"), "{}", daemon.log());
    let dropped = setup.run(&["dead", "drop", "--payment", "9", "--yes"]);
    assert!(dropped.status.success(), "{}", told(&dropped));
    daemon.stop();
}

#[test]
fn a_timestamp_of_0_counts_as_none_and_one_in_the_future_is_counted() {
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let daemon = setup.start();
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    // In milliseconds, as some producers write it, and more than any clock can say.
    let timestamps = [None, Some(0), Some(now - 5), Some(now + 3600), Some(now * 1000), Some(u64::MAX)];
    let messages = timestamps.iter().enumerate().map(|(payment, timestamp)| {
        let body = format!(r#"{{"paymentId":{payment},"userId":1,"integral":1}}"#).into_bytes();
        let properties = BasicProperties::default();
        (body, timestamp.map_or_else(|| properties.clone(), |seconds| properties.clone().with_timestamp(seconds)))
    });
    client.publish(&setup.exchange, &setup.key, messages);
    daemon.wait_for("the ages of all are recorded", |daemon| {
        let credited = daemon.metric(r#"pointsd_messages_total{queue="credit",outcome="credited"}"#);
        let (_, metrics) = daemon.get("/metrics")?;
        let has = |line: &str| metrics.lines().any(|is| is == line);
        let recorded = has("pointsd_clock_skew_messages_total 3") && has("pointsd_end_to_end_seconds_count 1");
        (credited.ge(&6.0) && recorded).then_some(())
    });
    assert!(daemon.metric("pointsd_end_to_end_seconds_sum") < 60.0);
    daemon.stop();
}
