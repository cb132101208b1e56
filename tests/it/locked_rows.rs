//! Rows that another session holds locked, on PostgreSQL: all other messages go on; and writers that wait for one another,
//! which costs no message an attempt.

use crate::support::{
    amqp::Client,
    daemon::{Daemon, Setup},
    eventually,
    ledger::{Kind, Place},
    rabbit,
};
use diesel::{
    Connection, PgConnection, QueryableByName, RunQueryDsl,
    connection::SimpleConnection,
    sql_query,
    sql_types::{BigInt, Double, Text},
};
use lapin::BasicProperties;
use pointsd::database::DatabaseUrl;
use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

/// The retry steps: enough for as long as the rows are locked.
const STEPS: &str = r#"["1s", "2s", "3s", "4s", "5s", "6s", "7s", "8s"]"#;

fn body(payment: &str, user: &str) -> Vec<u8> {
    format!(r#"{{"paymentId":"{payment}","userId":"{user}","integral":1}}"#).into_bytes()
}

fn connect(place: &Place) -> PgConnection {
    let DatabaseUrl::Postgres(url) = place.parsed() else { unreachable!("it is PostgreSQL") };
    PgConnection::establish(&url).unwrap()
}

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
}

#[derive(QueryableByName)]
struct Credited {
    #[diesel(sql_type = Text)]
    payment_id: String,
    #[diesel(sql_type = Text)]
    user_id: String,
    #[diesel(sql_type = Double)]
    at: f64,
}

/// When each payment was credited: the beginning of its transaction.
fn credited(place: &Place) -> Vec<Credited> {
    sql_query("SELECT payment_id, user_id, extract(epoch FROM credited_at)::double precision AS at FROM points_credits")
        .load(&mut connect(place))
        .unwrap()
}

fn outcome(daemon: &Daemon, outcome: &str) -> f64 {
    daemon.metric(&format!(r#"pointsd_messages_total{{queue="credit",outcome="{outcome}"}}"#))
}

/// Publishes payments of 200 users at 200 a second, and a duplicate of the payment `first` each second. When each was
/// published.
fn publish_for(client: &Client, setup: &Setup, time: Duration, published: &mut HashMap<String, f64>) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        let step = published.len();
        let bodies: Vec<(String, Vec<u8>)> = (step..step + 10)
            .map(|number| (format!("p{number}"), body(&format!("p{number}"), &format!("u{}", number % 200))))
            .collect();
        let at = now();
        published.extend(bodies.iter().map(|(payment, _)| (payment.clone(), at)));
        let duplicate = step.is_multiple_of(200).then(|| body("first", "other"));
        let bodies = bodies.into_iter().map(|(_, body)| body).chain(duplicate);
        client.publish(&setup.exchange, &setup.key, bodies.map(|body| (body, BasicProperties::default())));
        std::thread::sleep(Duration::from_millis(48));
    }
}

#[test]
fn a_locked_balance_and_a_locked_credit_hold_nobody_else_up() {
    let place = Place::new(Kind::Postgres);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let daemon = setup.start_with(|command| {
        command.env("POINTSD_RETRY__DELAYS", STEPS);
    });
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    client.publish(&setup.exchange, &setup.key, [(body("first", "other"), BasicProperties::default())]);
    let mut published = HashMap::new();
    // Also of the user whose balance will be locked.
    publish_for(&client, &setup, Duration::from_secs(2), &mut published);
    let expected = published.len() as f64 + 1.0;
    daemon.wait_for("all are credited", |daemon| (outcome(daemon, "credited") >= expected).then_some(()));

    let mut other = connect(&place);
    other
        .batch_execute(
            "BEGIN; UPDATE points_balances SET balance = balance WHERE user_id = 'u7'; \
             UPDATE points_credits SET verified_at = verified_at WHERE payment_id = 'first'",
        )
        .unwrap();
    let locked_at = now();
    publish_for(&client, &setup, Duration::from_secs(15), &mut published);
    let unlocked_at = now();
    let (status, _) = daemon.get("/readyz").unwrap();
    assert_eq!(status, 200, "the others go on");
    other.batch_execute("ROLLBACK").unwrap();

    let during: Vec<(&String, f64)> = published
        .iter()
        .filter(|(payment, at)| **at > locked_at && payment[1..].parse::<usize>().unwrap() % 200 != 7)
        .map(|(payment, at)| (payment, *at))
        .collect();
    let done: HashMap<String, f64> = credited(&place).into_iter().map(|row| (row.payment_id, row.at)).collect();
    let in_time = during.iter().filter(|(payment, _)| done.get(*payment).is_some_and(|at| *at < unlocked_at));
    let rate = in_time.count() as f64 / during.len() as f64;
    let mut ages: Vec<f64> =
        during.iter().map(|(payment, at)| done.get(*payment).map_or(f64::INFINITY, |credited| credited - at)).collect();
    ages.sort_by(f64::total_cmp);
    let late = ages[ages.len() * 99 / 100];
    eprintln!(
        "of the others {:.1} % were credited while rows were locked, the 99th percentile of age was {late:.2} s",
        rate * 100.0
    );
    assert!(rate >= 0.95, "{rate}");
    // The goal is 3 s. Other tests run beside this one: the long form, alone, holds it to that.
    let goal = if std::env::var_os("LONG").is_some() { 3.0 } else { 8.0 };
    assert!(late < goal, "{late}");
    assert!(
        !done.iter().any(|(payment, at)| {
            payment.starts_with('p')
                && payment[1..].parse::<usize>().unwrap() % 200 == 7
                && *at > locked_at
                && *at < unlocked_at
        }),
        "the row was locked"
    );

    daemon.wait_for("the messages of the locked rows are done, too", |_| {
        (credited(&place).len() == published.len() + 1).then_some(())
    });
    assert!(outcome(&daemon, "retry") > 0.0, "they waited in the retry queues");
    assert_eq!(client.ready(&setup.dead_queue), Some(0));
    let log = daemon.log();
    assert!(log.contains("row locked by another session") && log.contains("user u7"), "{log}");
    assert!(log.contains("commit timed out") && log.contains("row released"), "{log}");
    assert!(log.matches("commit timed out").count() < 6, "a known row is not run into: {log}");
    assert!(credited(&place).iter().all(|row| !row.user_id.is_empty()));
    assert_eq!(setup.json(&["verify", "--json"])["violations"], 0);
    daemon.stop();
}

#[test]
fn a_check_on_a_locked_row_takes_its_retry_step_and_the_others_go_on() {
    let place = Place::new(Kind::Postgres);
    let payments = crate::support::payments::Payments::new();
    payments.set_all(&(0..60).map(|id| (id, "TRADE_SUCCESS")).collect::<Vec<_>>());
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let text = std::fs::read_to_string(setup.config()).unwrap();
    let more = "[compensation]\nfirst = \"500ms\"\ndelays = [\"1h\"]\n[pay_status]\nsource = \"sql\"";
    std::fs::write(setup.config(), format!("{text}\n{more}\n{}", payments.settings())).unwrap();
    place.open().migrate().unwrap();
    // Locked before its check comes, and by a transaction that only locks.
    place.execute(
        "INSERT INTO points_credits (payment_id, user_id, points) VALUES ('7', 'u', 1); \
                   INSERT INTO points_balances (user_id, balance) VALUES ('u', 1)",
    );
    let mut other = connect(&place);
    other.batch_execute("BEGIN; SELECT 1 FROM points_credits WHERE payment_id = '7' FOR UPDATE").unwrap();
    let daemon = setup.start_with(|command| {
        command.env("POINTSD_RETRY__DELAYS", STEPS);
    });
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    let bodies = (0..60).map(|id| (body(&id.to_string(), "u"), BasicProperties::default()));
    client.publish(&setup.exchange, &setup.key, bodies);
    let verified = || -> i64 {
        #[derive(QueryableByName)]
        struct Count {
            #[diesel(sql_type = BigInt)]
            count: i64,
        }
        let query = sql_query("SELECT count(*) FROM points_credits WHERE verified_at IS NOT NULL");
        query.get_result::<Count>(&mut connect(&place)).unwrap().count
    };
    daemon.wait_for("the other 59 are verified", |_| (verified() == 59).then_some(()));
    daemon.wait_for("the check takes a retry step", |daemon| {
        (daemon.metric(r#"pointsd_messages_total{queue="check",outcome="retry"}"#) > 0.0).then_some(())
    });
    other.batch_execute("ROLLBACK").unwrap();
    daemon.wait_for("it is verified, too", |_| (verified() == 60).then_some(()));
    assert_eq!(client.ready(&setup.dead_queue), Some(0));
    daemon.stop();
}

#[test]
fn a_row_that_another_transaction_inserts_holds_nobody_else_up_for_long() {
    let place = Place::new(Kind::Postgres);
    place.open().migrate().unwrap();
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let mut other = connect(&place);
    other
        .batch_execute("BEGIN; INSERT INTO points_credits (payment_id, user_id, points) VALUES ('p33', 'v', 1)")
        .unwrap();
    let daemon = setup.start_with(|command| {
        command.env("POINTSD_RETRY__DELAYS", STEPS).env("POINTSD_LEDGER__TIMEOUT", "2s");
    });
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    let bodies = (0..200).map(|id| (body(&format!("p{id}"), &format!("u{id}")), BasicProperties::default()));
    client.publish(&setup.exchange, &setup.key, bodies);
    daemon.wait_for("the others are credited", |daemon| (outcome(daemon, "credited") >= 199.0).then_some(()));
    daemon.wait_for("this one is retried", |daemon| (outcome(daemon, "retry") > 0.0).then_some(()));
    other.batch_execute("ROLLBACK").unwrap();
    daemon.wait_for("this one is credited", |daemon| (outcome(daemon, "credited") >= 200.0).then_some(()));
    assert_eq!(client.ready(&setup.dead_queue), Some(0));
    daemon.stop();
}

#[test]
fn writers_that_wait_for_one_another_cost_no_message_an_attempt() {
    let place = Place::new(Kind::Postgres);
    place.open().migrate().unwrap();
    place.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER slow AFTER INSERT OR UPDATE ON points_balances \
           DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()",
    );
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "prefetch = 200");
    let start = || {
        setup.start_with(|command| {
            command
                .env("POINTSD_LEDGER__POOL_SIZE", "4")
                .env("POINTSD_LEDGER__BATCH_MAX", "10")
                .env("POINTSD_LEDGER__TIMEOUT", "5s");
        })
    };
    let daemons = [start(), start()];
    daemons.iter().for_each(Daemon::wait_ready);
    let client = Client::connect(&rabbit::shared().url());
    let bodies = (0..400).map(|id| (body(&format!("p{id}"), "one"), BasicProperties::default()));
    client.publish(&setup.exchange, &setup.key, bodies);
    eventually("all are credited", || (credited(&place).len() == 400).then_some(()));
    let waited = daemons.iter().filter(|daemon| daemon.log().contains("commit timed out")).count();
    assert!(waited > 0, "they waited longer than a lock may take: {}", daemons[0].log());
    for daemon in &daemons {
        assert_eq!(outcome(daemon, "retry"), 0.0, "{}", daemon.log());
        assert!(!daemon.log().contains("row locked by another session"), "{}", daemon.log());
    }
    assert_eq!(setup.json(&["balance", "one", "--json"])["balance"], 400);
    daemons.into_iter().for_each(Daemon::stop);
}
