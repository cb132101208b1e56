//! Every credit is checked against its payment: the table of `docs/concepts/checks.md`, against real payment tables and
//! gateways.

use crate::support::{
    amqp::{Client, check_entry, check_message, text},
    daemon::{Daemon, Setup, Signal, told},
    eventually,
    gateway::{Gateway, Reply},
    ledger::{Kind, Place},
    payments::Payments,
    rabbit,
};
use lapin::BasicProperties;

pub fn body(payment: u64, user: &str, points: u64) -> Vec<u8> {
    format!(r#"{{"paymentId": {payment}, "userId": "{user}", "integral": {points}}}"#).into_bytes()
}

/// Publishes points messages as a producer does.
pub fn publish(client: &Client, setup: &Setup, payments: impl IntoIterator<Item = u64>) {
    let messages = payments.into_iter().map(|payment| (body(payment, "u", 10), BasicProperties::default()));
    client.publish(&setup.exchange, &setup.key, messages);
}

/// A setup whose checks come after these delays.
pub fn setup(place: &Place, source: &str, settings: &str, first: &str, delays: &str) -> Setup {
    setup_at(&rabbit::shared().url(), place, source, settings, first, delays)
}

pub fn setup_at(broker: &str, place: &Place, source: &str, settings: &str, first: &str, delays: &str) -> Setup {
    let more =
        format!("[compensation]\nfirst = {first:?}\ndelays = {delays}\n[pay_status]\nsource = {source:?}\n{settings}");
    Setup::new(broker, &place.url, &more)
}

pub fn start(setup: &Setup) -> Daemon {
    let daemon = setup.start();
    daemon.wait_ready();
    daemon
}

/// How a payment stands in the ledger: its state and whether it was found paid, or `None`.
pub fn state(setup: &Setup, payment: u64) -> Option<(String, bool)> {
    let story = setup.json(&["payment", &payment.to_string(), "--ledger-only", "--json"]);
    let state = story["state"].as_str()?.to_owned();
    Some((state, !story["verified_at"].is_null()))
}

pub fn is(state: &str, verified: bool) -> Option<(String, bool)> {
    Some((state.to_owned(), verified))
}

pub fn wait_for_state(setup: &Setup, daemon: &Daemon, payment: u64, expected: &Option<(String, bool)>) {
    daemon.wait_for(&format!("payment {payment} is {expected:?}"), |_| {
        (state(setup, payment) == *expected).then_some(())
    });
}

pub fn checks(daemon: &Daemon, status: &str, step: &str) -> f64 {
    daemon.metric(&format!(r#"pointsd_checks_total{{status="{status}",step="{step}"}}"#))
}

pub fn wait_for_checks(daemon: &Daemon, status: &str, step: &str, count: f64) {
    daemon.wait_for(&format!("{count} checks of {status}: {step}"), |daemon| {
        (checks(daemon, status, step) >= count).then_some(())
    });
}

pub fn assert_right(setup: &Setup) {
    let report = setup.json(&["verify", "--json"]);
    assert_eq!(report["violations"], 0, "{report}");
}

#[test]
fn points_of_a_payment_that_was_rolled_back_are_reversed_after_the_last_check_and_not_before() {
    let (place, payments) = (Place::new(Kind::Postgres), Payments::new());
    let setup = setup(&place, "sql", &payments.settings(), "500ms", r#"["4s", "5s"]"#);
    payments.set_all(&[(1, "WAIT_BUYER_PAY"), (2, "WAIT_BUYER_PAY"), (4, "TRADE_SUCCESS"), (5, "TRADE_CLOSED")]);
    let daemon = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    // The third is of a transaction that was rolled back: there is no row.
    publish(&client, &setup, 1..=5);
    wait_for_checks(&daemon, "pending", "recheck", 2.0);
    wait_for_checks(&daemon, "unknown", "recheck", 1.0);
    wait_for_state(&setup, &daemon, 4, &is("credited", true));
    wait_for_state(&setup, &daemon, 5, &is("reversed", false));
    assert_eq!(setup.json(&["balance", "u", "--json"])["balance"], 40, "what is not certain yet still counts");
    payments.set(2, "TRADE_SUCCESS");
    wait_for_state(&setup, &daemon, 2, &is("credited", true));
    assert_eq!((state(&setup, 1), state(&setup, 3)), (is("credited", false), is("credited", false)), "not before");
    for payment in [1, 3] {
        wait_for_state(&setup, &daemon, payment, &is("reversed", false));
    }
    assert_eq!((checks(&daemon, "pending", "recheck"), checks(&daemon, "unknown", "recheck")), (3.0, 2.0));
    assert_eq!(setup.json(&["balance", "u", "--json"])["balance"], 20);
    // The confirming check finds nothing to do, and is the last one.
    wait_for_checks(&daemon, "pending", "none", 1.0);
    wait_for_checks(&daemon, "unknown", "none", 1.0);
    for queue in [&setup.check_queue, &setup.check_delay_queue("5s"), &setup.dead_queue] {
        assert_eq!(client.ready(queue), Some(0), "{queue}");
    }
    for (series, value) in [
        ("pointsd_points_credited_total", 50.0),
        ("pointsd_points_reversed_total", 30.0),
        ("pointsd_payment_source_configured", 1.0),
        (r#"pointsd_checks_total{status="paid",step="verify"}"#, 2.0),
        (r#"pointsd_checks_total{status="closed",step="reverse"}"#, 1.0),
        (r#"pointsd_checks_total{status="pending",step="expire"}"#, 1.0),
        (r#"pointsd_messages_total{queue="check",outcome="checked"}"#, 12.0),
        (r#"pointsd_in_flight{queue="check"}"#, 0.0),
    ] {
        assert_eq!(daemon.metric(series), value, "{series}");
    }
    let log = daemon.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("ledger corrected")).collect();
    assert_eq!(lines.len(), 3, "one line each: {log}");
    assert!(lines.iter().any(|line| line.contains("payment_id=\"5\"") && line.contains("reason=\"closed\"")), "{log}");
    daemon.wait_for("unverified credits are counted", |daemon| {
        daemon.metric("pointsd_unverified_credits").eq(&0.0).then_some(())
    });
    assert_right(&setup);
    daemon.stop();
}

#[test]
fn a_payment_tells_its_whole_story_in_order() {
    let (place, payments) = (Place::new(Kind::Sqlite), Payments::new());
    let setup = setup(&place, "sql", &payments.settings(), "200ms", r#"["2s"]"#);
    let daemon = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    payments.set_all(&[(7, "WAIT_BUYER_PAY"), (8, "HELD")]);
    publish(&client, &setup, [7, 8]);
    wait_for_state(&setup, &daemon, 7, &is("reversed", false));
    payments.set(7, "TRADE_SUCCESS");
    wait_for_state(&setup, &daemon, 7, &is("credited", true));
    eventually("the other one is parked", || client.ready(&setup.dead_queue)?.eq(&1).then_some(()));
    payments.set(7, "TRADE_CLOSED");

    let output = setup.run(&["payment", "7", "--live"]);
    let story = told(&output);
    let lines: Vec<&str> =
        story.lines().map(|line| line.split_once("Z  ").map_or(line, |(_, text)| text).trim()).collect();
    assert_eq!(
        lines,
        [
            "payment 7: credited",
            "credited 10 points to user u",
            "reversal of -10 points: expired",
            "reinstatement of +10 points: paid after all",
            "last found paid",
            "status at the payment source: closed",
        ],
        "{story}"
    );
    let story = setup.json(&["payment", "8", "--live", "--json"]);
    assert_eq!((&story["state"], &story["live"]["status"]["said"]), (&"credited".into(), &"\"HELD\"".into()));
    let parked = &story["dead_queue"]["messages"][0];
    assert_eq!(parked["reason"], "unrecognised", "{story}");
    assert_eq!(parked["source_queue"], setup.check_queue.as_str());
    assert!(parked["error"].as_str().unwrap().contains("HELD"), "{story}");
    assert_eq!(setup.run(&["payment", "9", "--live"]).status.code(), Some(1));
    assert_right(&setup);
    daemon.stop();
}

#[test]
fn what_is_in_no_list_is_parked_after_the_last_check_and_the_ledger_stays() {
    let (place, payments) = (Place::new(Kind::Sqlite), Payments::new());
    let setup = setup(&place, "sql", &payments.settings(), "100ms", r#"["100ms", "200ms"]"#);
    payments.set(1, "ODD");
    let daemon = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    publish(&client, &setup, [1]);
    eventually("it is parked", || client.ready(&setup.dead_queue)?.eq(&1).then_some(()));
    let parked = client.take(&setup.dead_queue).unwrap();
    assert_eq!(text(&parked, "x-pointsd-reason"), Some("unrecognised".into()));
    assert_eq!(text(&parked, "x-pointsd-check"), Some("LongLongInt(2)".into()));
    let sent: serde_json::Value = serde_json::from_slice(&parked.delivery.data).unwrap();
    assert_eq!(sent, serde_json::json!({"paymentId": "1", "userId": "u", "integral": 10}), "a points message");
    let content_type = parked.delivery.properties.content_type().as_ref().map(|it| it.as_str().to_owned());
    assert_eq!(content_type.as_deref(), Some("application/json"));
    wait_for_checks(&daemon, "unrecognised", "dead", 1.0);
    assert_eq!(checks(&daemon, "unrecognised", "recheck"), 2.0);
    assert_eq!(state(&setup, 1), is("credited", false));
    assert_eq!(daemon.metric(r#"pointsd_messages_total{queue="check",outcome="unrecognised"}"#), 1.0);
    daemon.stop();
}

#[test]
fn a_person_decides_where_that_is_wanted() {
    let (place, payments) = (Place::new(Kind::Postgres), Payments::new());
    let setup = setup(&place, "sql", &payments.settings(), "100ms", r#"["100ms"]"#);
    payments.set(1, "TRADE_CLOSED");
    let daemon = setup.start_with(|command| {
        command.env("POINTSD_COMPENSATION__ON_UNPAID", "dead");
    });
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    publish(&client, &setup, [1, 2]);
    // A third one was never credited: nobody has its points, so that there is nothing to decide.
    client.publish("", &setup.check_queue, [check_message(&[check_entry("3", "u", 10)], 0)]);
    eventually("two are parked", || client.ready(&setup.dead_queue)?.eq(&2).then_some(()));
    wait_for_state(&setup, &daemon, 3, &is("reversed", false));
    let mut parked: Vec<_> =
        client.drain(&setup.dead_queue).iter().map(|it| text(it, "x-pointsd-reason").unwrap()).collect();
    parked.sort();
    assert_eq!(parked, ["expired", "unpaid"]);
    assert_eq!((state(&setup, 1), state(&setup, 2)), (is("credited", false), is("credited", false)));
    assert_eq!(daemon.metric("pointsd_points_reversed_total"), 0.0);
    assert_right(&setup);
    daemon.stop();
}

#[test]
fn a_payment_of_another_user_is_a_conflict() {
    let (place, payments) = (Place::new(Kind::Sqlite), Payments::new());
    let settings = payments.settings() + "user_column = \"buyer\"\n";
    let setup = setup(&place, "sql", &settings, "100ms", r#"["100ms"]"#);
    payments.set_all(&[(1, "TRADE_SUCCESS"), (2, "TRADE_SUCCESS"), (3, "TRADE_SUCCESS")]);
    payments.execute(
        "UPDATE shop.payments SET buyer = 'somebody' WHERE id = 2; UPDATE shop.payments SET buyer = NULL WHERE id = 3",
    );
    let daemon = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    publish(&client, &setup, 1..=3);
    wait_for_state(&setup, &daemon, 1, &is("credited", true));
    eventually("two are parked", || client.ready(&setup.dead_queue)?.eq(&2).then_some(()));
    for parked in client.drain(&setup.dead_queue) {
        assert_eq!(text(&parked, "x-pointsd-reason"), Some("conflict".into()));
        assert!(text(&parked, "x-pointsd-error").unwrap().contains("has another user"));
    }
    assert_eq!(state(&setup, 2), is("credited", false));
    daemon.stop();
}

#[test]
fn a_gateway_that_knows_better_repairs_the_row_and_a_change_by_somebody_else_wins() {
    let (place, payments) = (Place::new(Kind::Postgres), Payments::new());
    let url = payments.url.clone();
    let gateway = Gateway::start(move |id, _| match id {
        // Closed by somebody else while the gateway says paid.
        "2" => {
            crate::support::postgres::Postgres::execute(
                &url,
                "UPDATE shop.payments SET \"Status\" = 'TRADE_CLOSED' WHERE id = 2",
            );
            Reply::trade("TRADE_SUCCESS")
        }
        "1" | "3" => Reply::trade("TRADE_SUCCESS"),
        "4" => Reply::trade("TRADE_CLOSED"),
        _ => Reply::status(404),
    });
    let settings = payments.settings() + &gateway.settings();
    let setup = setup(&place, "sql+http", &settings, "200ms", r#"["6s", "1h"]"#);
    let pending = [1, 2, 4, 5].map(|id| (id, "WAIT_BUYER_PAY"));
    payments.set_all(&pending);
    payments.set(6, "TRADE_SUCCESS");
    let daemon = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    // The third has no row at all: the gateway's word is all there is.
    publish(&client, &setup, 1..=6);
    for payment in [1, 3, 6] {
        wait_for_state(&setup, &daemon, payment, &is("credited", true));
    }
    wait_for_state(&setup, &daemon, 4, &is("reversed", false));
    assert_eq!(
        [1, 2, 4, 5].map(|id| payments.status(id)),
        [
            "TRADE_SUCCESS".to_owned(),
            "TRADE_CLOSED".to_owned(),
            "WAIT_BUYER_PAY".to_owned(),
            "WAIT_BUYER_PAY".to_owned(),
        ]
    );
    assert_eq!(state(&setup, 2), is("credited", false), "at the next check");
    wait_for_state(&setup, &daemon, 2, &is("reversed", false));
    assert_eq!(payments.status(2), "TRADE_CLOSED");
    wait_for_checks(&daemon, "closed", "reverse", 2.0);
    wait_for_checks(&daemon, "pending", "recheck", 3.0);
    assert_right(&setup);
    daemon.stop();
}

/// A PostgreSQL ledger that refuses to credit payment 1 for good, or as long as it does not recover.
fn refusing_ledger(refusal: &str) -> Place {
    let place = Place::new(Kind::Postgres);
    place.open().migrate().unwrap();
    place.execute(&format!(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
           RAISE EXCEPTION 'refused' USING ERRCODE = '{refusal}'; END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON points_credits FOR EACH ROW WHEN (NEW.payment_id = '1') \
           EXECUTE FUNCTION refuse()"
    ));
    place
}

#[test]
fn a_credit_that_failed_for_good_is_made_by_the_check_once_also_when_it_is_requeued() {
    let payments = Payments::new();
    let place = refusing_ledger("23514");
    let setup = setup(&place, "sql", &payments.settings(), "3s", r#"["3s"]"#);
    payments.set(1, "TRADE_SUCCESS");
    let daemon = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    publish(&client, &setup, [1]);
    eventually("it is parked", || client.ready(&setup.dead_queue)?.eq(&1).then_some(()));
    assert_eq!(state(&setup, 1), None);
    place.execute("DROP TRIGGER refuse ON points_credits");
    wait_for_state(&setup, &daemon, 1, &is("credited", true));
    wait_for_checks(&daemon, "paid", "late_credit", 1.0);

    let requeue = setup.run(&["dead", "requeue", "--all", "--canary", "0"]);
    assert!(requeue.status.success(), "{}", told(&requeue));
    daemon.wait_for("it is a duplicate", |daemon| {
        daemon.metric(r#"pointsd_messages_total{queue="credit",outcome="duplicate"}"#).eq(&1.0).then_some(())
    });
    // The credit was confirmed once, and needs no further check.
    wait_for_checks(&daemon, "paid", "verify", 1.0);
    assert_eq!(client.drain_checks(&setup.check_delay_queue("3s")), []);
    assert_eq!(setup.json(&["balance", "u", "--json"])["balance"], 10);
    assert_eq!(client.ready(&setup.dead_queue), Some(0));
    assert_right(&setup);
    daemon.stop();
}

#[test]
fn what_goes_back_to_the_credit_queue_is_checked_again() {
    let payments = Payments::new();
    let place = refusing_ledger("23514");
    let setup = setup(&place, "sql", &payments.settings(), "100ms", r#"["100ms"]"#);
    payments.set(1, "ODD");
    let daemon = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    publish(&client, &setup, [1]);
    // The credit is refused, and its check cannot make it either.
    eventually("both are parked", || client.ready(&setup.dead_queue)?.eq(&2).then_some(()));
    place.execute("DROP TRIGGER refuse ON points_credits");
    payments.set(1, "TRADE_CLOSED");
    let requeue = setup.run(&["dead", "requeue", "--reason", "rejected", "--canary", "0"]);
    assert!(requeue.status.success(), "{}", told(&requeue));
    // It is credited, and found closed by the check that follows.
    wait_for_state(&setup, &daemon, 1, &is("reversed", false));
    assert_right(&setup);
    daemon.stop();
}

#[test]
fn a_payment_that_becomes_paid_in_the_moment_of_its_expiry_is_reinstated() {
    let (place, payments) = (Place::new(Kind::Sqlite), Payments::new());
    let setup = setup(&place, "sql", &payments.settings(), "200ms", r#"["5s"]"#);
    payments.set_all(&[(1, "WAIT_BUYER_PAY"), (2, "WAIT_BUYER_PAY")]);
    let daemon = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    publish(&client, &setup, [1]);
    client.publish("", &setup.check_queue, [check_message(&[check_entry("2", "u", 10)], 0)]);
    // Expired, and voided because it was never credited.
    wait_for_state(&setup, &daemon, 1, &is("reversed", false));
    wait_for_state(&setup, &daemon, 2, &is("reversed", false));
    payments.set_all(&[(1, "TRADE_SUCCESS"), (2, "TRADE_SUCCESS")]);
    wait_for_state(&setup, &daemon, 1, &is("credited", true));
    wait_for_state(&setup, &daemon, 2, &is("credited", true));
    wait_for_checks(&daemon, "paid", "reinstate", 2.0);
    assert_eq!(setup.json(&["balance", "u", "--json"])["balance"], 20);
    assert_right(&setup);
    daemon.stop();
}

#[test]
fn a_reversal_by_a_daemon_that_died_is_confirmed_all_the_same() {
    let (place, payments) = (Place::new(Kind::Postgres), Payments::new());
    let setup = setup(&place, "sql", &payments.settings(), "200ms", r#"["5s"]"#);
    payments.set(1, "WAIT_BUYER_PAY");
    let daemon = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    publish(&client, &setup, [1]);
    eventually("it is credited", || state(&setup, 1));
    // Reversed, and then it died before the confirming check was sent: the last check comes again.
    place.execute(
        "UPDATE points_credits SET state = 'reversed';
         INSERT INTO points_adjustments (payment_id, seq, user_id, kind, points, reason) VALUES ('1', 1, 'u', 'reversal', -10, 'expired');
         UPDATE points_balances SET balance = 0",
    );
    wait_for_checks(&daemon, "pending", "none", 1.0);
    payments.set(1, "TRADE_SUCCESS");
    wait_for_state(&setup, &daemon, 1, &is("credited", true));
    assert_right(&setup);
    daemon.stop();
}

#[test]
fn a_credit_that_is_delayed_until_after_its_payment_was_given_up_never_ends_credited() {
    for (status, refusal) in [("WAIT_BUYER_PAY", "40001"), ("TRADE_CLOSED", "40001"), ("TRADE_CLOSED", "23514")] {
        let payments = Payments::new();
        let place = refusing_ledger(refusal);
        let setup = setup(&place, "sql", &payments.settings(), "3s", r#"["200ms"]"#);
        payments.set(1, status);
        let daemon = setup.start_with(|command| {
            command.env("POINTSD_RETRY__DELAYS", r#"["6s"]"#);
        });
        daemon.wait_ready();
        let client = Client::connect(&rabbit::shared().url());
        publish(&client, &setup, [1]);
        // In a retry queue, or in the dead queue.
        let waits = if refusal == "40001" { setup.retry_queue("6s") } else { setup.dead_queue.clone() };
        eventually("it waits", || client.ready(&waits)?.eq(&1).then_some(()));
        // What comes again by itself is not checked before; one that is parked is.
        assert_eq!(client.drain_checks(&setup.check_delay_queue("3s")).len(), usize::from(refusal == "23514"));
        if refusal == "23514" {
            client.publish("", &setup.check_queue, [check_message(&[check_entry("1", "u", 10)], 0)]);
        }
        place.execute("DROP TRIGGER refuse ON points_credits");
        if refusal == "23514" {
            wait_for_checks(&daemon, "closed", "void", 1.0);
            assert!(setup.run(&["dead", "requeue", "--all", "--canary", "0"]).status.success());
            daemon.wait_for("it comes later, and is a duplicate", |daemon| {
                daemon.metric(r#"pointsd_messages_total{queue="credit",outcome="duplicate"}"#).eq(&1.0).then_some(())
            });
        } else {
            let (word, step) = if status == "TRADE_CLOSED" { ("closed", "reverse") } else { ("pending", "expire") };
            wait_for_checks(&daemon, word, step, 1.0);
        }
        wait_for_state(&setup, &daemon, 1, &is("reversed", false));
        assert_eq!(setup.json(&["balance", "u", "--json"])["balance"], 0);
        assert_right(&setup);
        daemon.stop();
    }
}

#[test]
fn without_a_source_there_are_no_checks_and_no_queues_for_them() {
    let (place, payments) = (Place::new(Kind::Sqlite), Payments::new());
    let with = setup(&place, "sql", &payments.settings(), "1h", "[]");
    let client = Client::connect(&rabbit::shared().url());
    let none = |command: &mut std::process::Command| {
        command.env("POINTSD_PAY_STATUS__SOURCE", "none");
    };
    let refused = with.command(&["check-config"]).env("POINTSD_PAY_STATUS__SOURCE", "none").output().unwrap();
    assert!(told(&refused).contains("is used only with pay_status.source"), "{}", told(&refused));

    let daemon = start(&with);
    publish(&client, &with, [1]);
    let delay_queue = with.check_delay_queue("1h");
    eventually("its check is scheduled", || client.ready(&delay_queue)?.eq(&1).then_some(()));
    daemon.stop();
    let text = std::fs::read_to_string(with.config()).unwrap();
    std::fs::write(with.config(), text.split("[pay_status]").next().unwrap()).unwrap();
    let daemon = with.start_with(none);
    daemon.wait_ready();
    publish(&client, &with, [2]);
    eventually("it is credited", || state(&with, 2));
    assert_eq!(client.ready(&delay_queue), Some(1), "it keeps what it has, and gets no more");
    daemon
        .wait_for("it says that others check", |daemon| daemon.log().contains("the check queue exists").then_some(()));
    daemon.stop();

    // From the beginning: nothing of it is declared, and a signal to reload ends nothing.
    let place = Place::new(Kind::Sqlite);
    let without = Setup::new(&rabbit::shared().url(), &place.url, "");
    let daemon = start(&without);
    assert!(daemon.log().contains("WARN credits are not checked"), "{}", daemon.log());
    assert!(told(&without.run(&["verify"])).starts_with("credits are not checked"));
    assert_eq!((client.ready(&without.check_queue), client.ready(&without.check_delay_queue("30s"))), (None, None));
    daemon.signal(Signal::HUP);
    daemon.wait_for("it says so", |daemon| daemon.log().contains("no brake is engaged").then_some(()));
    daemon.stop();
}

#[test]
fn what_waits_for_a_delay_that_is_changed_is_checked_and_its_queue_can_be_retired() {
    let (place, payments) = (Place::new(Kind::Sqlite), Payments::new());
    let setup = setup(&place, "sql", &payments.settings(), "4s", r#"["1h"]"#);
    let client = Client::connect(&rabbit::shared().url());
    payments.set_all(&[(1, "TRADE_SUCCESS"), (2, "TRADE_SUCCESS")]);
    let old = setup.check_delay_queue("4s");
    let daemon = start(&setup);
    publish(&client, &setup, [1]);
    eventually("it waits", || client.ready(&old)?.eq(&1).then_some(()));
    daemon.stop();

    let with_delays = |first: &str, delays: &str| {
        let (first, delays) = (first.to_owned(), delays.to_owned());
        move |command: &mut std::process::Command| {
            command.env("POINTSD_COMPENSATION__FIRST", first).env("POINTSD_COMPENSATION__DELAYS", delays);
        }
    };
    let daemon = setup.start_with(with_delays("100ms", r#"["4s"]"#));
    daemon.wait_ready();
    publish(&client, &setup, [2]);
    wait_for_state(&setup, &daemon, 2, &is("credited", true));
    wait_for_state(&setup, &daemon, 1, &is("credited", true));
    wait_for_checks(&daemon, "paid", "verify", 2.0);
    assert_eq!((client.ready(&old), checks(&daemon, "paid", "verify")), (Some(0), 2.0), "one check each");
    daemon.stop();

    let retire = |first: &str, delays: &str| {
        let mut command = setup.command(&["topology", "retire", &old]);
        with_delays(first, delays)(&mut command);
        command.output().unwrap()
    };
    let refused = retire("100ms", r#"["4s"]"#);
    assert!(told(&refused).contains("is in use"), "{}", told(&refused));
    let retired = retire("100ms", "[]");
    assert!(retired.status.success(), "{}", told(&retired));
    assert_eq!(client.ready(&old), None);
    let none_of_ours = setup.run(&["topology", "retire", &setup.check_queue]);
    assert!(told(&none_of_ours).contains("is in use"), "{}", told(&none_of_ours));
}

/// What an earlier build left: its first check delay queue bound to the producers' exchange, and producers' messages in it.
#[test]
fn a_check_delay_queue_of_an_earlier_build_is_unbound_and_what_comes_through_it_is_checked() {
    let (place, payments) = (Place::new(Kind::Sqlite), Payments::new());
    let setup = setup(&place, "sql", &payments.settings(), "2s", r#"["1h"]"#);
    let client = Client::connect(&rabbit::shared().url());
    start(&setup).stop();
    let delay_queue = setup.check_delay_queue("2s");
    client.bind(&delay_queue, &setup.exchange, &setup.key);
    payments.set_all(&[(1, "TRADE_SUCCESS"), (2, "TRADE_SUCCESS"), (3, "TRADE_SUCCESS")]);
    // While no daemon runs: one copy is credited, and the other one waits for its check.
    publish(&client, &setup, [1]);
    client.publish("", &setup.credit_queue, [(body(2, "u", 10), BasicProperties::default())]);
    eventually("it has waited", || client.ready(&setup.check_queue)?.eq(&1).then_some(()));
    let daemon = start(&setup);
    daemon
        .wait_for("it is logged", |daemon| daemon.log().contains("came through this check delay queue").then_some(()));
    for payment in [1, 2] {
        wait_for_state(&setup, &daemon, payment, &is("credited", true));
    }
    publish(&client, &setup, [3]);
    let mut scheduled = Vec::new();
    eventually("only its check waits, and not what its producer sent", || {
        scheduled.extend(client.drain_checks(&delay_queue));
        scheduled.contains(&("3".to_owned(), 0)).then_some(())
    });
    assert_eq!(daemon.log().matches("came through this check delay queue").count(), 1, "once");
    daemon.stop();
}
