//! Notifications of the payment side: the worked examples of `docs/guides/notifications.md`, each against real servers, with a
//! topology that somebody else has declared, and with one of our own.

use crate::{
    compensation::{assert_right, is, state},
    support::{
        amqp::{Client, text},
        daemon::{Daemon, Setup, told},
        eventually,
        ledger::{Kind, Place},
        postgres::{self, Postgres},
        rabbit, unique,
    },
};
use lapin::{BasicProperties, ExchangeKind, types::AMQPValue};
use serde_json::Value;
use std::time::Duration;

/// One of the examples, set up between servers of the tests: a virtual host, a ledger and a shop's database of its own.
pub struct Example {
    pub setup: Setup,
    pub client: Client,
    pub shop: String,
    exchange: String,
    key: String,
    queue: String,
    _place: Place,
}

/// `declared_by_somebody_else`: before the daemon comes, and it declares nothing.
pub fn example(name: &str, kind: Kind, shop_sql: &str, declared_by_somebody_else: bool) -> Example {
    let file = format!("{}/examples/{name}.toml", env!("CARGO_MANIFEST_DIR"));
    let mut text = std::fs::read_to_string(file).unwrap();
    let (place, shop) = (Place::new(kind), postgres::shared().database());
    Postgres::execute(&shop, shop_sql);
    let vhost = unique("example");
    let rabbit = rabbit::shared();
    rabbit.ctl(&["add_vhost", &vhost]);
    rabbit.ctl(&["set_permissions", "-p", &vhost, "guest", ".*", ".*", ".*"]);
    let broker = rabbit.url().replace("%2f", &vhost);
    let mut replace = |this: &str, that: &str| {
        assert!(text.contains(this), "{name} has {this:?}");
        text = text.replacen(this, that, 1);
    };
    replace(
        "\"amqp://guest:guest@127.0.0.1:5672/%2f\"",
        &format!("{broker:?}\ndeclare = {}", !declared_by_somebody_else),
    );
    replace("\"postgres://pointsd@127.0.0.1/shop\"", &format!("{:?}\nauto_migrate = true", place.url));
    replace("[pay_status.sql]\n", &format!("[pay_status.sql]\nurl = {shop:?}\n"));
    replace("first = \"30s\"", "first = \"500ms\"");
    replace("delays = [\"1m\", \"5m\", \"30m\"]", "delays = [\"1s\", \"5s\"]");
    let mut setup = Setup::new(&broker, &place.url, "");
    std::fs::write(setup.config(), text).unwrap();
    let config = setup.json(&["check-config", "--json"]);
    let of = |config: &Value, key: &str| config[key].as_str().unwrap().to_owned();
    let (broker_settings, source) = (&config["broker"], &config["source"][0]);
    setup.dead_queue = of(broker_settings, "dead_queue");
    setup.credit_queue = of(broker_settings, "credit_queue");
    let place_of = if source.is_null() { broker_settings } else { source };
    let (exchange, key) = (of(place_of, "exchange"), of(place_of, "routing_key"));
    let queue = of(place_of, if source.is_null() { "credit_queue" } else { "queue" });
    let client = Client::connect(&broker);
    if declared_by_somebody_else {
        declare(&setup, &client);
    }
    Example { setup, client, shop, exchange, key, queue, _place: place }
}

/// Declares what `topology print` shows; the queues of others as their programs do, without any argument.
fn declare(setup: &Setup, client: &Client) {
    let topology = setup.json(&["topology", "print", "--json"]);
    let list = |key: &str| topology[key].as_array().unwrap().clone();
    for exchange in list("exchanges") {
        let kind = match exchange["type"].as_str().unwrap() {
            "direct" => ExchangeKind::Direct,
            "fanout" => ExchangeKind::Fanout,
            _ => ExchangeKind::Topic,
        };
        client.declare_exchange(exchange["name"].as_str().unwrap(), kind);
    }
    for queue in list("queues") {
        let arguments: Vec<(String, AMQPValue)> = queue["arguments"]
            .as_object()
            .unwrap()
            .iter()
            .filter(|(_, value)| **value != "classic")
            .map(|(name, value)| {
                let value = match value.as_i64() {
                    Some(number) => AMQPValue::LongLongInt(number),
                    None => AMQPValue::LongString(value.as_str().unwrap().into()),
                };
                (name.clone(), value)
            })
            .collect();
        let arguments: Vec<(&str, AMQPValue)> =
            arguments.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        client.declare_queue(queue["name"].as_str().unwrap(), &arguments);
    }
    for binding in list("bindings") {
        let of = |key: &str| binding[key].as_str().unwrap().to_owned();
        client.bind(&of("queue"), &of("exchange"), &of("key"));
    }
}

impl Example {
    pub fn sql(&self, sql: &str) {
        Postgres::execute(&self.shop, sql);
    }

    pub fn start(&self) -> Daemon {
        let daemon = self.setup.start();
        daemon.wait_ready();
        wait_for_queue(&daemon, &self.queue);
        daemon
    }

    pub fn notify(&self, bodies: &[&[u8]]) {
        let bodies = bodies.iter().map(|body| (body.to_vec(), BasicProperties::default()));
        self.client.publish(&self.exchange, &self.key, bodies);
    }

    pub fn points(&self, user: &str) -> i64 {
        self.setup.json(&["balance", user, "--json"])["balance"].as_i64().unwrap()
    }

    pub fn wait_for_points(&self, daemon: &Daemon, user: &str, points: i64) {
        daemon.wait_for(&format!("{user} has {points} points"), |_| self.points(user).eq(&points).then_some(()));
    }

    /// The reasons in the dead queue, with payment and error, sorted.
    pub fn dead(&self) -> Vec<(String, String, String)> {
        let list = self.setup.json(&["dead", "list", "--each", "--json"]);
        let mut dead: Vec<(String, String, String)> = list["each"]
            .as_array()
            .unwrap_or_else(|| panic!("{list}"))
            .iter()
            .map(|message| {
                let of = |key: &str| message[key].as_str().unwrap_or_default().to_owned();
                (of("reason"), of("payment_id"), of("error"))
            })
            .collect();
        dead.sort();
        dead
    }

    pub fn wait_for_dead(&self, daemon: &Daemon, count: u32) {
        daemon.wait_for(&format!("{count} messages are parked"), |_| {
            self.client.ready(&self.setup.dead_queue)?.ge(&count).then_some(())
        });
    }
}

/// The sources come up beside the credit queue.
pub fn wait_for_queue(daemon: &Daemon, queue: &str) {
    daemon.wait_for(&format!("{queue} is consumed"), |daemon| {
        daemon.log().lines().any(|line| line.contains("consuming") && line.contains(queue)).then_some(())
    });
}

pub fn settled(daemon: &Daemon, queue: &str, outcome: &str) -> f64 {
    daemon.metric(&format!(r#"pointsd_messages_total{{queue="{queue}",outcome="{outcome}"}}"#))
}

pub fn wait_for_settled(daemon: &Daemon, queue: &str, outcome: &str, count: f64) {
    daemon.wait_for(&format!("{count} messages of {queue} are {outcome}"), |daemon| {
        settled(daemon, queue, outcome).ge(&count).then_some(())
    });
}

const JAVA_LONG: &[u8] = include_bytes!("../fixtures/java/long.ser");
const JAVA_STRING: &[u8] = include_bytes!("../fixtures/java/string.ser");
const JAVA_LIST: &[u8] = include_bytes!("../fixtures/java/list.ser");

fn direct(kind: Kind, foreign: bool) {
    let shop = "CREATE TABLE pay_order (biz_order_no bigint PRIMARY KEY, status integer NOT NULL, biz_user_id bigint, \
                amount numeric(12, 2))";
    let example = example("direct-notification", kind, shop, foreign);
    let rows = "INSERT INTO pay_order VALUES (1, 1, 11, 10.99), (2, 3, 12, 20.00), (3, 2, 13, 30), (5, 0, 15, 50.5), \
                (6, 1, NULL, 60), (7, 1, 17, -7), (202002201101, 1, 18, 80)";
    example.sql(rows);
    let daemon = example.start();
    // 4 overtakes its producer's commit, 8 never comes, 5 is told of three times.
    example.notify(&[
        b"1",
        b"\"2\"",
        b"3",
        b"4",
        b"5",
        b"5",
        b"5",
        b"6",
        b"7",
        b"8",
        JAVA_LONG,
        JAVA_STRING,
        JAVA_LIST,
        b"{}",
    ]);
    for (user, points) in [("11", 10), ("12", 20), ("15", 50), ("18", 80)] {
        example.wait_for_points(&daemon, user, points);
    }
    assert_eq!(example.points("14"), 0);
    example.sql("INSERT INTO pay_order VALUES (4, 1, 14, 40)");
    example.wait_for_points(&daemon, "14", 40);
    example.wait_for_dead(&daemon, 6);
    let dead = example.dead();
    let expected = [
        ("conflict", "3", "the notification reports the payment as paid, but its own record is closed"),
        ("expired", "8", "the notification reports the payment as paid, but the payment has no record"),
        ("malformed", "", "body is an object; must be a string or an integer"),
        ("malformed", "", "body is another serialized Java object; must be a java.lang.Long or a java.lang.String"),
        ("rejected", "6", "user_column \"biz_user_id\" is NULL"),
        ("rejected", "7", "amount_column \"amount\" is negative"),
    ]
    .map(|(reason, payment, error)| (reason.to_owned(), payment.to_owned(), error.to_owned()));
    assert_eq!(dead, expected, "{}", daemon.log());
    for (payment, status) in [(1, 3), (2, 3), (3, 2), (4, 3), (5, 3), (202_002_201_101_i64, 3)] {
        example.sql(&format!(
            "DO $$ BEGIN ASSERT (SELECT status FROM pay_order WHERE biz_order_no = {payment}) = {status}; END $$"
        ));
    }
    assert_eq!(state(&example.setup, 3), None, "nothing is credited for a closed one");
    assert_eq!(state(&example.setup, 5), is("credited", true));
    for (outcome, count) in [("credited", 4.0), ("duplicate", 3.0), ("checked", 2.0), ("conflict", 1.0)] {
        assert_eq!(settled(&daemon, "trade", outcome), count, "{outcome}");
    }
    assert_eq!(daemon.metric("pointsd_points_credited_total"), 200.0);
    assert_right(&example.setup);

    // What is sent back from the dead queue comes to its own queue again.
    example.sql("UPDATE pay_order SET biz_user_id = 16 WHERE biz_order_no = 6");
    let output = example.setup.run(&["dead", "requeue", "--payment", "6"]);
    assert!(output.status.success(), "{}", told(&output));
    example.wait_for_points(&daemon, "16", 60);
    daemon.stop();
}

fn fanout(kind: Kind, foreign: bool) {
    let shop = "CREATE TABLE pay_record (pay_no text PRIMARY KEY, status varchar(10) NOT NULL, user_id text, \
                total_fee bigint)";
    let example = example("fanout-notification", kind, shop, foreign);
    example.sql(
        "INSERT INTO pay_record VALUES ('1', '601002', 'a', 1099), ('2', '601001', 'b', 2000), ('3', '601003', 'c', 3000), \
         ('5', '601002', 'e', 99), ('6', '601002', 'f', 99999999), ('7', '999', 'g', 700), ('9', '601002', 'i', 900)",
    );
    let daemon = example.start();
    let notification = |id: &str, message_type: &str, business_type: &str| {
        format!(
            r#"{{"id": 5, "messageType": "{message_type}", "businessKey1": "{id}", "businessKey2": "{business_type}", "businessKey3": null}}"#
        )
        .into_bytes()
    };
    let result = |id: &str| notification(id, "payresult_notify", "60201");
    let mut bodies: Vec<Vec<u8>> = ["1", "1", "2", "3", "4", "5", "6", "7", "9"].iter().map(|id| result(id)).collect();
    bodies.push(notification("9", "payresult_notify", "60202"));
    bodies.push(notification("9", "course_publish", "60201"));
    bodies.push(b"not json".to_vec());
    example.notify(&bodies.iter().map(Vec::as_slice).collect::<Vec<_>>());
    for (user, points) in [("a", 10), ("f", 1000), ("i", 9)] {
        example.wait_for_points(&daemon, user, points);
    }
    example.sql("INSERT INTO pay_record VALUES ('4', '601002', 'd', 400)");
    example.wait_for_points(&daemon, "d", 4);
    example.sql("UPDATE pay_record SET status = '601002' WHERE pay_no = '2'");
    example.wait_for_points(&daemon, "b", 20);
    // A refund.
    example.sql("UPDATE pay_record SET status = '601004' WHERE pay_no = '1'");
    example.notify(&[&result("1")]);
    example.wait_for_points(&daemon, "a", 0);
    example.wait_for_dead(&daemon, 2);
    let dead = example.dead();
    assert_eq!(dead[0].0, "malformed");
    assert!(dead[1].0 == "unrecognised" && dead[1].1 == "7", "{dead:?}");
    // A closed one leaves no row, and neither does one that gives no points.
    for payment in [3, 5, 7] {
        assert_eq!(state(&example.setup, payment), None, "{payment}");
    }
    assert_eq!(state(&example.setup, 1), is("reversed", true), "a reversal leaves what was verified");
    for (outcome, count) in [("credited", 3.0), ("duplicate", 1.0), ("ignored", 3.0), ("malformed", 1.0)] {
        wait_for_settled(&daemon, "paynotify", outcome, count);
    }
    assert_right(&example.setup);
    daemon.stop();
}

fn points_message(kind: Kind, foreign: bool) {
    let shop = "CREATE TABLE payment (id bigint PRIMARY KEY, status text NOT NULL, user_id text)";
    let example = example("points-message", kind, shop, foreign);
    example.sql("INSERT INTO payment VALUES (1, 'PAID', 'a'), (2, 'NEW', 'b'), (3, 'REFUNDED', 'c'), (5, 'PAID', 'x')");
    let daemon = example.start();
    let body =
        |id: u64, user: &str| format!(r#"{{"paymentId": {id}, "userId": "{user}", "integral": 10}}"#).into_bytes();
    let bodies = [body(1, "a"), body(1, "a"), body(2, "b"), body(3, "c"), body(4, "d"), body(5, "e")];
    example.notify(&bodies.iter().map(Vec::as_slice).collect::<Vec<_>>());
    daemon
        .wait_for("the closed one is reversed", |_| (state(&example.setup, 3) == is("reversed", false)).then_some(()));
    daemon.wait_for("those that were not paid are reversed", |_| {
        let reversed = is("reversed", false);
        (state(&example.setup, 2) == reversed && state(&example.setup, 4) == reversed).then_some(())
    });
    daemon.wait_for("the paid one is verified", |_| (state(&example.setup, 1) == is("credited", true)).then_some(()));
    example.wait_for_dead(&daemon, 1);
    assert_eq!(example.dead()[0].0, "conflict", "somebody else's payment");
    assert_eq!(settled(&daemon, "credit", "credited"), 5.0);
    assert_eq!(settled(&daemon, "credit", "duplicate"), 1.0);
    assert_right(&example.setup);
    daemon.stop();
}

#[test]
fn the_direct_notification_credits_what_is_paid_on_postgres() {
    direct(Kind::Postgres, true);
    direct(Kind::Postgres, false);
}

#[test]
fn the_direct_notification_credits_what_is_paid_on_sqlite() {
    direct(Kind::Sqlite, true);
    direct(Kind::Sqlite, false);
}

#[test]
fn the_fanout_notification_credits_and_reverses_on_postgres() {
    fanout(Kind::Postgres, true);
    fanout(Kind::Postgres, false);
}

#[test]
fn the_fanout_notification_credits_and_reverses_on_sqlite() {
    fanout(Kind::Sqlite, true);
    fanout(Kind::Sqlite, false);
}

#[test]
fn the_points_message_is_credited_and_checked_on_postgres() {
    points_message(Kind::Postgres, true);
    points_message(Kind::Postgres, false);
}

#[test]
fn the_points_message_is_credited_and_checked_on_sqlite() {
    points_message(Kind::Sqlite, true);
    points_message(Kind::Sqlite, false);
}

#[test]
fn a_further_queue_of_points_messages_is_credited_and_checked_as_the_first_one() {
    let (place, name) = (Place::new(Kind::Sqlite), unique("topic"));
    let shop = crate::support::payments::Payments::new();
    let more = format!(
        "[compensation]\nfirst = \"500ms\"\ndelays = []\n[pay_status]\nsource = \"sql\"\n{}\n[[source]]\nname = \"partner\"\n\
         exchange = \"{name}\"\nexchange_type = \"topic\"\nrouting_key = \"points.*\"\nqueue = \"{name}.q\"\nformat = \"credit\"\n",
        shop.settings()
    );
    let setup = Setup::new(&rabbit::shared().url(), &place.url, &more);
    shop.set_all(&[(1, "TRADE_SUCCESS"), (2, "TRADE_CLOSED"), (3, "TRADE_SUCCESS")]);
    let daemon = setup.start();
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    wait_for_queue(&daemon, &format!("{name}.q"));
    let message = |id, points| (crate::compensation::body(id, "u", points), BasicProperties::default());
    client.publish(&name, "points.eu", [message(1, 10), message(2, 10), message(1, 10)]);
    client.publish(&name, "points.us", [message(1, 11)]);
    client.publish(&setup.exchange, &setup.key, [message(3, 5)]);
    for (payment, expected) in [(1, is("credited", true)), (2, is("reversed", false)), (3, is("credited", true))] {
        crate::compensation::wait_for_state(&setup, &daemon, payment, &expected);
    }
    for (queue, outcome, count) in [
        ("partner", "credited", 2.0),
        ("partner", "duplicate", 1.0),
        ("partner", "conflict", 1.0),
        ("credit", "credited", 1.0),
    ] {
        wait_for_settled(&daemon, queue, outcome, count);
    }
    assert_eq!(daemon.metric(r#"pointsd_in_flight{queue="partner"}"#), 0.0);
    eventually("the conflict is parked", || client.ready(&setup.dead_queue)?.eq(&1).then_some(()));
    let parked = client.take(&setup.dead_queue).unwrap();
    assert_eq!(text(&parked, "x-pointsd-source-queue").as_deref(), Some(format!("{name}.q").as_str()));
    assert_eq!(text(&parked, "x-pointsd-source"), None, "the credit format");
    daemon.stop();
}

#[test]
fn a_source_whose_queue_is_not_there_or_different_pauses_alone() {
    let (place, name) = (Place::new(Kind::Sqlite), unique("gone"));
    let more = format!(
        "[[source]]\nname = \"late\"\nexchange = \"{name}\"\nrouting_key = \"k\"\nqueue = \"{name}.q\"\ndeclare = false\n\
         queue_type = \"classic\"\nformat = \"credit\"\n"
    );
    let setup = Setup::new(&rabbit::shared().url(), &place.url, &more);
    let client = Client::connect(&rabbit::shared().url());
    let daemon = setup.start();
    daemon.wait_ready();
    daemon.wait_for("the source is told as paused", |daemon| {
        let (status, body) = daemon.get("/readyz")?;
        (status == 200 && body.contains("source late paused: broker: missing at the broker") && body.contains(&name))
            .then_some(())
    });
    crate::compensation::publish(&client, &setup, [1]);
    daemon.wait_for("the credit queue goes on", |_| (state(&setup, 1) == is("credited", false)).then_some(()));
    // Somebody else's queue, in his own way.
    client.declare_exchange(&name, ExchangeKind::Direct);
    client.declare_queue(&format!("{name}.q"), &[("x-max-length", AMQPValue::LongInt(100_000))]);
    client.bind(&format!("{name}.q"), &name, "k");
    client.publish(&name, "k", [(crate::compensation::body(2, "u", 10), BasicProperties::default())]);
    daemon.wait_for("its message is credited", |_| (state(&setup, 2) == is("credited", false)).then_some(()));
    daemon.stop();
}

#[test]
fn notifications_pause_while_the_payment_table_is_down_and_credits_go_on() {
    let example = example(
        "direct-notification",
        Kind::Sqlite,
        "CREATE TABLE pay_order (biz_order_no bigint PRIMARY KEY, status integer NOT NULL, biz_user_id bigint, amount numeric)",
        false,
    );
    example.sql("INSERT INTO pay_order VALUES (1, 1, 11, 10)");
    let daemon = example.start();
    example.sql("ALTER TABLE pay_order RENAME TO gone");
    example.notify(&[b"1"]);
    daemon.wait_for("the source pauses", |daemon| {
        daemon.get("/readyz")?.1.contains("source trade paused: pay_status").then_some(())
    });
    assert_eq!(daemon.metric(r#"pointsd_paused{dependency="pay_status"}"#), 1.0);
    example.client.publish(
        "points",
        "points.credit",
        [(crate::compensation::body(7, "seven", 7), BasicProperties::default())],
    );
    example.wait_for_points(&daemon, "seven", 7);
    example.sql("ALTER TABLE gone RENAME TO pay_order");
    example.wait_for_points(&daemon, "11", 10);
    // A column that is taken away is the trouble of those messages only that need it.
    example.sql("ALTER TABLE pay_order DROP COLUMN amount; INSERT INTO pay_order VALUES (2, 1, 12)");
    example.notify(&[b"1", b"2"]);
    example.wait_for_dead(&daemon, 1);
    let dead = example.dead();
    assert_eq!(dead[0].2, "amount_column \"amount\" is missing in the payment table", "{dead:?}");
    wait_for_settled(&daemon, "trade", "duplicate", 1.0);
    daemon.stop();
}

#[test]
fn a_table_that_may_only_be_read_pauses_what_must_mark_payments_and_loses_nothing() {
    let shop = "CREATE TABLE pay_order (biz_order_no bigint PRIMARY KEY, status integer NOT NULL, biz_user_id bigint, \
                amount numeric); CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not now'; END $$; \
                CREATE TRIGGER no BEFORE UPDATE ON pay_order FOR EACH STATEMENT EXECUTE FUNCTION no()";
    let example = example("direct-notification", Kind::Sqlite, shop, false);
    example.sql("INSERT INTO pay_order VALUES (1, 1, 11, 10), (2, 3, 12, 20)");
    let daemon = example.start();
    example.notify(&[b"1", b"2"]);
    daemon.wait_for("the source pauses", |daemon| {
        daemon.get("/readyz")?.1.contains("source trade paused: pay_status").then_some(())
    });
    std::thread::sleep(Duration::from_secs(5));
    let log = daemon.log();
    assert_eq!(log.matches("resumed dependency=\"pay_status\"").count(), 0, "it stays paused: {log}");
    example.sql("DROP TRIGGER no ON pay_order");
    example.wait_for_points(&daemon, "11", 10);
    example.wait_for_points(&daemon, "12", 20);
    assert_eq!(example.client.ready(&example.setup.dead_queue), Some(0));
    daemon.stop();
}

#[test]
fn a_points_message_does_not_escape_its_check_by_a_header() {
    let example = example(
        "direct-notification",
        Kind::Sqlite,
        "CREATE TABLE pay_order (biz_order_no bigint PRIMARY KEY, status integer NOT NULL, biz_user_id bigint, amount numeric)",
        false,
    );
    // One is closed already, the other one pending first.
    example.sql("INSERT INTO pay_order VALUES (1, 2, 11, 10), (2, 1, 11, 10)");
    let daemon = example.start();
    let mut headers = lapin::types::FieldTable::default();
    headers.insert("x-pointsd-source".into(), AMQPValue::LongString("trade".into()));
    let properties = BasicProperties::default().with_headers(headers);
    example.client.publish(
        "points",
        "points.credit",
        [1, 2].map(|id| (crate::compensation::body(id, "11", 10), properties.clone())),
    );
    crate::compensation::wait_for_checks(&daemon, "pending", "recheck", 1.0);
    example.sql("UPDATE pay_order SET status = 2");
    for payment in [1, 2] {
        crate::compensation::wait_for_state(&example.setup, &daemon, payment, &is("reversed", false));
    }
    daemon.stop();
}
