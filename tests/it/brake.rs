//! The brake: what looks like a wrong configuration stops reversing, and nothing of it is for good.

use crate::{
    compensation::{assert_right, body, is, publish, setup, start, state, wait_for_checks, wait_for_state},
    support::{
        amqp::Client,
        daemon::{Daemon, Setup, Signal, told},
        ledger::{Kind, Place},
        payments::Payments,
        rabbit,
    },
};

const BRAKE: &str = "20";

fn start_with_brake(setup: &Setup) -> Daemon {
    let daemon = setup.start_with(|command| {
        command.env("POINTSD_COMPENSATION__BRAKE_AFTER", BRAKE);
    });
    daemon.wait_ready();
    daemon
}

fn wait_for_brake(daemon: &Daemon) {
    daemon.wait_for("the brake is engaged", |daemon| {
        daemon.metric(r#"pointsd_paused{dependency="pay_status"}"#).eq(&1.0).then_some(())
    });
    let (status, body) = daemon.get("/readyz").unwrap();
    assert!(status == 200 && body.contains("checks paused: pay_status: the brake: 20 reversals in a row"), "{body}");
    assert!(daemon.log().contains("the brake: 20 reversals"), "{}", daemon.log());
}

#[test]
fn a_wrong_value_list_is_stopped_at_the_limit_and_put_right() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let (place, payments) = (Place::new(kind), Payments::new());
        // What is paid stands among what is closed.
        let settings = payments.settings();
        let wrong = settings
            .replace("paid = [\"TRADE_SUCCESS\"]", "paid = [\"PAID\"]")
            .replace("[\"TRADE_CLOSED\"]", "[\"TRADE_CLOSED\", \"TRADE_SUCCESS\"]");
        let setup = setup(&place, "sql", &wrong, "300ms", r#"["1h"]"#);
        let rows: Vec<(u64, &str)> = (1..=100).map(|id| (id, "TRADE_SUCCESS")).collect();
        payments.set_all(&rows);
        let daemon = start_with_brake(&setup);
        let client = Client::connect(&rabbit::shared().url());
        publish(&client, &setup, 1..=100);
        wait_for_brake(&daemon);
        assert_eq!(daemon.metric("pointsd_points_reversed_total"), 200.0, "the limit is kept to the one");
        assert_eq!(setup.json(&["balance", "u", "--json"])["balance"], 800);
        // Credits go on all the while.
        payments.set(101, "TRADE_SUCCESS");
        publish(&client, &setup, [101]);
        daemon.wait_for("it is credited", |_| state(&setup, 101));
        daemon.stop();
        assert_eq!(client.ready(&setup.dead_queue), Some(0));

        let text = std::fs::read_to_string(setup.config()).unwrap();
        std::fs::write(setup.config(), text.replace(&wrong, &settings)).unwrap();
        let daemon = start_with_brake(&setup);
        wait_for_checks(&daemon, "paid", "verify", 81.0);
        // Those whose check message went back are put right already; the others are found closed for good.
        let put_right = daemon.metric(r#"pointsd_checks_total{status="paid",step="reinstate"}"#);
        let left = (0..=20_u32).find(|left| f64::from(20 - left) <= put_right).unwrap();
        let listed = setup.json(&["reconcile", "--reversed", "--json"]);
        assert_eq!((listed["found"].as_u64(), listed["sent"].as_u64()), (Some(u64::from(left)), Some(0)), "{listed}");
        let sent = setup.run(&["reconcile", "--reversed", "--newer-than", "1h", "--apply"]);
        assert!(sent.status.success() && told(&sent).contains(&format!("sent {left} of {left}")), "{}", told(&sent));
        wait_for_checks(&daemon, "paid", "reinstate", 20.0);
        assert_eq!(setup.json(&["balance", "u", "--json"])["balance"], 1010);
        assert_right(&setup);
        daemon.stop();
    }
}

#[test]
fn a_wrong_table_is_stopped_at_the_limit_and_goes_on_when_it_is_released() {
    let (place, payments) = (Place::new(Kind::Postgres), Payments::new());
    let setup = setup(&place, "sql", &payments.settings(), "300ms", r#"["2s"]"#);
    let daemon = start_with_brake(&setup);
    let client = Client::connect(&rabbit::shared().url());
    // The table is empty: somebody has pointed to a copy that nobody fills.
    publish(&client, &setup, 1..=100);
    wait_for_brake(&daemon);
    assert_eq!(daemon.metric("pointsd_points_reversed_total"), 200.0);
    assert_eq!(setup.json(&["balance", "u", "--json"])["balance"], 800);
    let rows: Vec<(u64, &str)> = (1..=100).map(|id| (id, "TRADE_SUCCESS")).collect();
    payments.set_all(&rows);
    daemon.signal(Signal::HUP);
    // The others are found paid, and the confirming checks put right what was reversed.
    wait_for_checks(&daemon, "paid", "verify", 80.0);
    wait_for_checks(&daemon, "paid", "reinstate", 20.0);
    assert_eq!(daemon.metric(r#"pointsd_paused{dependency="pay_status"}"#), 0.0);
    assert_eq!(setup.json(&["balance", "u", "--json"])["balance"], 1000);
    for payment in [1, 50, 100] {
        wait_for_state(&setup, &daemon, payment, &is("credited", true));
    }
    assert_right(&setup);
    daemon.stop();
}

#[test]
fn an_unrecognised_status_reverses_nothing_and_engages_no_brake() {
    let (place, payments) = (Place::new(Kind::Sqlite), Payments::new());
    let wrong = payments.settings().replace("\"TRADE_SUCCESS\"", "\"PAID\"").replace("\"TRADE_CLOSED\"", "\"CLOSED\"");
    let setup = setup(&place, "sql", &wrong, "200ms", r#"["200ms"]"#);
    let rows: Vec<(u64, &str)> =
        (1..=50).map(|id| (id, if id % 2 == 0 { "TRADE_SUCCESS" } else { "TRADE_CLOSED" })).collect();
    payments.set_all(&rows);
    let daemon = start_with_brake(&setup);
    let client = Client::connect(&rabbit::shared().url());
    publish(&client, &setup, 1..=50);
    wait_for_checks(&daemon, "unrecognised", "dead", 50.0);
    assert_eq!(setup.json(&["balance", "u", "--json"])["balance"], 500);
    assert_eq!(daemon.metric(r#"pointsd_paused{dependency="pay_status"}"#), 0.0);
    daemon.stop();
    // Corrected: what was parked is sent to be checked again.
    let text = std::fs::read_to_string(setup.config()).unwrap();
    std::fs::write(setup.config(), text.replace(&wrong, &payments.settings())).unwrap();
    let daemon = start(&setup);
    let requeue = setup.run(&["dead", "requeue", "--reason", "unrecognised", "--canary", "0"]);
    assert!(requeue.status.success(), "{}", told(&requeue));
    wait_for_checks(&daemon, "paid", "verify", 25.0);
    wait_for_checks(&daemon, "closed", "reverse", 25.0);
    assert_eq!(setup.json(&["balance", "u", "--json"])["balance"], 250);
    assert_right(&setup);
    daemon.stop();
}

#[test]
fn a_brake_does_not_hold_up_the_exit() {
    let (place, payments) = (Place::new(Kind::Sqlite), Payments::new());
    let setup = setup(&place, "sql", &payments.settings(), "100ms", "[]");
    let daemon = start_with_brake(&setup);
    let client = Client::connect(&rabbit::shared().url());
    publish(&client, &setup, 1..=40);
    wait_for_brake(&daemon);
    daemon.stop();
    let left = client.drain_checks(&setup.check_queue).len();
    assert!(left >= 20, "what was not checked is in its queue: {left}");
}

#[test]
fn lost_checks_are_listed_and_sent_again() {
    let (place, payments) = (Place::new(Kind::Postgres), Payments::new());
    let setup = setup(&place, "sql", &payments.settings(), "1h", "[]");
    let rows: Vec<(u64, &str)> =
        (1..=30).map(|id| (id, if id == 30 { "TRADE_CLOSED" } else { "TRADE_SUCCESS" })).collect();
    payments.set_all(&rows);
    let daemon = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    publish(&client, &setup, 1..=30);
    daemon.wait_for("all are credited", |_| setup.json(&["balance", "u", "--json"])["balance"].eq(&300).then_some(()));
    // Somebody purged the queue in which the checks waited.
    client.drain(&setup.check_delay_queue("1h"));
    assert_eq!(setup.json(&["verify", "--json"])["unverified"], 30);
    assert_eq!(setup.json(&["reconcile", "--json"])["found"], 0, "they are not late yet");
    let listed = setup.run(&["reconcile", "--older-than", "1ms", "--limit", "7"]);
    let text = told(&listed);
    assert!(listed.status.success() && text.lines().count() == 8 && text.contains("there are more"), "{text}");
    let begun = std::time::Instant::now();
    let sent = setup.json(&["reconcile", "--older-than", "1ms", "--apply", "--rate", "20", "--json"]);
    assert_eq!((sent["found"].as_u64(), sent["sent"].as_u64()), (Some(30), Some(30)), "{sent}");
    assert!(begun.elapsed() > std::time::Duration::from_secs(1), "the rate is kept");
    wait_for_checks(&daemon, "paid", "verify", 29.0);
    wait_for_state(&setup, &daemon, 30, &is("reversed", false));
    assert_eq!(setup.json(&["verify", "--json"])["unverified"], 0);
    let none = setup.command(&["reconcile", "--apply"]).env("POINTSD_PAY_STATUS__SOURCE", "none").output().unwrap();
    assert_eq!(none.status.code(), Some(2), "{}", told(&none));

    // What is replayed is not scheduled: it says what to run, also when it credited nothing itself.
    payments.set(31, "TRADE_SUCCESS");
    let file = setup.folder.path().join("replay.jsonl");
    std::fs::write(&file, body(31, "u", 10)).unwrap();
    for outcome in ["credited 1, duplicate 0", "credited 0, duplicate 1"] {
        let replayed = told(&setup.run(&["replay", file.to_str().unwrap()]));
        assert!(replayed.contains(outcome), "{replayed}");
        assert!(replayed.contains("run `pointsd reconcile --older-than 0s --apply`"), "{replayed}");
    }
    assert!(setup.run(&["reconcile", "--older-than", "0s", "--apply"]).status.success());
    wait_for_checks(&daemon, "paid", "verify", 30.0);
    assert_right(&setup);
    daemon.stop();
}
