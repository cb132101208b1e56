//! Whatever dies or is lost meanwhile: each payment is credited once, and nothing stays behind.

use crate::support::{
    amqp::{Client, text},
    daemon::{Daemon, Setup, Signal},
    eventually,
    flow::{Flow, work_off},
    ledger::{Kind, Place},
    postgres::Postgres,
    rabbit::{self, Rabbit},
};
use diesel::{Connection, PgConnection, connection::SimpleConnection};
use lapin::BasicProperties;
use pointsd::database::DatabaseUrl;
use std::time::{Duration, Instant};

/// How many kills must find unacknowledged deliveries.
const KILLS: u32 = 20;

/// Kills the daemon at a random moment while messages come, and tells how many deliveries it had not acknowledged:
/// those that come back to the queue.
fn kill(client: &Client, setup: &Setup, daemon: Daemon, flow: &mut Flow) -> u32 {
    let begun = client.begin(&setup.exchange, &setup.key, flow.bodies(1500));
    std::thread::sleep(Duration::from_micros(flow.roll(150_000)));
    // Stopped first, so that what it holds can be counted; for the daemon it is all one moment.
    daemon.signal(Signal::STOP);
    client.finish(begun);
    let before = settled_count(client, setup);
    daemon.kill();
    let begun = Instant::now();
    loop {
        let returned = client.ready(&setup.credit_queue).unwrap().saturating_sub(before);
        if returned > 0 || begun.elapsed() > Duration::from_millis(500) {
            return returned;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// How many messages are ready, once that number stands still.
fn settled_count(client: &Client, setup: &Setup) -> u32 {
    let mut last = client.ready(&setup.credit_queue).unwrap();
    loop {
        std::thread::sleep(Duration::from_millis(30));
        let now = client.ready(&setup.credit_queue).unwrap();
        if now == last {
            return now;
        }
        last = now;
    }
}

fn kills_at_random_moments(kind: Kind) {
    let rabbit = Rabbit::start(None);
    let place = Place::new(kind);
    let setup = Setup::new(&rabbit.url(), &place.url, "");
    let mut daemon = setup.start();
    daemon.wait_ready();
    let client = Client::connect(&rabbit.url());
    let mut flow = Flow::new(kind as u64 + 7);
    let (mut counted, mut tried) = (0, 0);
    while counted < KILLS {
        tried += 1;
        assert!(tried < 10 * KILLS, "only {counted} of {tried} kills found unacknowledged deliveries");
        counted += u32::from(kill(&client, &setup, daemon, &mut flow) > 0);
        daemon = setup.start();
        daemon.wait_ready();
    }
    work_off(&client, &setup, daemon);
    flow.assert_credited_once(&client, &setup);
}

#[test]
fn kills_at_random_moments_lose_and_double_nothing_in_postgresql() {
    kills_at_random_moments(Kind::Postgres);
}

#[test]
fn kills_at_random_moments_lose_and_double_nothing_in_sqlite() {
    kills_at_random_moments(Kind::Sqlite);
}

/// Nobody credits while this connection lives: what is delivered meanwhile stays unacknowledged.
pub fn hold_the_ledger(place: &Place) -> PgConnection {
    let DatabaseUrl::Postgres(url) = place.parsed() else { panic!("a PostgreSQL ledger") };
    let mut connection = PgConnection::establish(&url).unwrap();
    connection.batch_execute("BEGIN; LOCK TABLE points_credits IN ACCESS EXCLUSIVE MODE").unwrap();
    connection
}

fn wait_until_in_flight(daemon: &Daemon) {
    daemon.wait_for("deliveries are in flight", |daemon| {
        daemon.metric(r#"pointsd_in_flight{queue="credit"}"#).gt(&0.0).then_some(())
    });
}

#[test]
fn a_broker_that_stops_and_starts_is_waited_for() {
    let mut rabbit = Rabbit::start(None);
    let place = Place::new(Kind::Postgres);
    let setup = Setup::new(&rabbit.url(), &place.url, "");
    let daemon = setup.start();
    daemon.wait_ready();
    let mut flow = Flow::new(3);
    for _ in 0..3 {
        let held = hold_the_ledger(&place);
        let client = Client::connect(&rabbit.url());
        flow.publish(&client, &setup, 4000);
        drop(client);
        wait_until_in_flight(&daemon);
        rabbit.stop();
        drop(held);
        daemon.wait_not_ready("broker");
        assert_eq!(daemon.metric(r#"pointsd_paused{dependency="broker"}"#), 1.0);
        assert_eq!(daemon.metric("pointsd_broker_connected"), 0.0);
        assert_eq!(daemon.get("/healthz").unwrap().0, 200);
        rabbit.boot();
        daemon.wait_ready();
        assert_eq!(daemon.metric(r#"pointsd_paused{dependency="broker"}"#), 0.0);
    }
    let client = Client::connect(&rabbit.url());
    work_off(&client, &setup, daemon);
    flow.assert_credited_once(&client, &setup);
}

#[test]
fn a_daemon_that_is_told_to_stop_settles_and_leaves_in_time() {
    let place = Place::new(Kind::Postgres);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let client = Client::connect(&rabbit::shared().url());
    let mut flow = Flow::new(5);
    for round in 0..5 {
        let mut daemon = setup.start();
        daemon.wait_ready();
        flow.publish(&client, &setup, 3000);
        std::thread::sleep(Duration::from_millis(flow.roll(30)));
        let begun = Instant::now();
        daemon.signal(if round % 2 == 0 { Signal::TERM } else { Signal::INT });
        let status = daemon.wait();
        assert!(status.success(), "{status}; {}", daemon.log());
        assert!(begun.elapsed() < Duration::from_secs(25), "within shutdown_timeout");
        assert!(daemon.log().contains("stopped") && !daemon.log().contains("at shutdown_timeout"), "{}", daemon.log());
    }
    work_off(&client, &setup, setup.start());
    flow.assert_credited_once(&client, &setup);
}

#[test]
fn two_daemons_share_a_queue_and_a_ledger() {
    let place = Place::new(Kind::Postgres);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "prefetch = 100");
    let (one, other) = (setup.start(), setup.start());
    one.wait_ready();
    other.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    let mut flow = Flow::new(9);
    for _ in 0..10 {
        flow.publish(&client, &setup, 1000);
    }
    eventually("the queue is drained", || client.ready(&setup.credit_queue)?.eq(&0).then_some(()));
    let credited = |daemon: &Daemon| daemon.metric(r#"pointsd_messages_total{queue="credit",outcome="credited"}"#);
    assert!(credited(&one) > 0.0 && credited(&other) > 0.0, "both worked");
    one.stop();
    work_off(&client, &setup, other);
    flow.assert_credited_once(&client, &setup);
}

#[test]
fn a_credit_queue_that_is_deleted_is_declared_again() {
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let daemon = setup.start();
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    client.delete_queue(&setup.credit_queue);
    daemon
        .wait_for("it has noticed", |daemon| daemon.log().contains("the broker cancelled the consumer").then_some(()));
    daemon.wait_ready();
    let mut flow = Flow::new(2);
    flow.publish(&client, &setup, 100);
    work_off(&client, &setup, daemon);
    flow.assert_credited_once(&client, &setup);
}

/// The broker can lose a consumer without a word; a session that receives nothing is therefore not kept for ever.
#[test]
fn a_session_that_receives_nothing_for_five_minutes_is_renewed() {
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let daemon = setup.start_with(|command| {
        command.env("POINTSD_LOG__LEVEL", "debug");
    });
    daemon.wait_ready();
    std::thread::sleep(Duration::from_secs(295));
    assert!(!daemon.log().contains("session renewed"), "{}", daemon.log());
    daemon.wait_for("it is renewed", |daemon| daemon.log().contains("session renewed").then_some(()));
    assert!(!daemon.log().contains("paused"), "no outage: {}", daemon.log());
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    let mut flow = Flow::new(3);
    flow.publish(&client, &setup, 100);
    work_off(&client, &setup, daemon);
    flow.assert_credited_once(&client, &setup);
}

#[test]
fn a_message_stays_in_its_queue_while_the_dead_queue_is_missing() {
    let place = Place::new(Kind::Sqlite);
    // First the daemon declares everything; then it may not, so that the queue stays missing.
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let first = setup.start();
    first.wait_ready();
    first.stop();
    let daemon = setup.start_with(|command| {
        command.env("POINTSD_BROKER__DECLARE", "false");
    });
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    client.delete_queue(&setup.dead_queue);
    let good = br#"{"paymentId":1,"userId":2,"integral":3}"#.to_vec();
    let messages = [b"bad".to_vec(), good].map(|body| (body, BasicProperties::default()));
    client.publish(&setup.exchange, &setup.key, messages);
    daemon.wait_not_ready(&format!("missing at the broker, and declare is false: queue {}", setup.dead_queue));
    assert!(daemon.log().contains("reached no queue"), "{}", daemon.log());
    eventually("the bad one waits, the good one is settled", || {
        client.ready(&setup.credit_queue)?.eq(&1).then_some(())
    });
    assert_eq!(setup.json(&["balance", "2", "--json"])["balance"], 3);

    let declared = setup.run(&["topology", "declare"]);
    assert!(declared.status.success());
    daemon.wait_ready();
    eventually("it is parked", || client.ready(&setup.dead_queue)?.eq(&1).then_some(()));
    assert_eq!(text(&client.take(&setup.dead_queue).unwrap(), "x-pointsd-reason"), Some("malformed".into()));
    daemon.stop();
}

#[test]
fn a_ledger_that_turns_read_only_pauses_the_daemon() {
    let place = Place::new(Kind::Postgres);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let daemon = setup.start();
    daemon.wait_ready();
    let DatabaseUrl::Postgres(url) = place.parsed() else { panic!() };
    let (server, database) = url.rsplit_once('/').unwrap();
    let read_only = |flag: &str| {
        Postgres::execute(
            &format!("{server}/postgres"),
            &format!(
                "ALTER DATABASE {database} SET default_transaction_read_only = {flag};
                 SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
            ),
        );
    };
    read_only("on");
    let client = Client::connect(&rabbit::shared().url());
    let mut flow = Flow::new(4);
    flow.publish(&client, &setup, 2000);
    daemon.wait_not_ready("ledger: read-only");
    assert_eq!(daemon.metric(r#"pointsd_paused{dependency="ledger"}"#), 1.0);
    eventually("everything is back in the queue", || client.ready(&setup.credit_queue)?.eq(&2000).then_some(()));
    read_only("off");
    daemon.wait_ready();
    work_off(&client, &setup, daemon);
    flow.assert_credited_once(&client, &setup);
}

#[test]
fn a_full_disk_pauses_the_daemon_until_there_is_room() {
    // The daemon sees a small file system of its own at /mnt, where its ledger is; the test reaches it through /proc.
    let setup = Setup::new(&rabbit::shared().url(), "sqlite:/mnt/pointsd.db", "");
    let script = format!(
        "mount -t tmpfs -o size=6m none /mnt && exec {} run --config {}",
        crate::support::daemon::POINTSD,
        setup.config().display()
    );
    let daemon = setup.start_with_mounts(&script);
    daemon.wait_ready();
    let mounted = format!("/proc/{}/root/mnt", daemon.child.id());
    let ballast = format!("{mounted}/ballast");
    // Fill it to the last block.
    let mut written = 0;
    while std::fs::write(format!("{ballast}-{written}"), [0_u8; 4096]).is_ok() {
        written += 1;
    }
    let client = Client::connect(&rabbit::shared().url());
    let mut flow = Flow::new(6);
    flow.publish(&client, &setup, 5000);
    daemon.wait_not_ready("ledger: no space left");
    eventually("nothing is acknowledged", || client.ready(&setup.credit_queue)?.gt(&0).then_some(()));
    // Block by block, so that it tries with almost enough room, too.
    for block in 0..written {
        std::fs::remove_file(format!("{ballast}-{block}")).unwrap();
        std::thread::sleep(Duration::from_millis(if block < 20 { 150 } else { 0 }));
    }
    daemon.wait_ready();
    let settled = |daemon: &Daemon| {
        let of = |outcome| daemon.metric(&format!(r#"pointsd_messages_total{{queue="credit",outcome="{outcome}"}}"#));
        let settled = of("credited") + of("duplicate");
        (settled >= 5000.0).then_some(())
    };
    daemon.wait_for("all are settled", settled);
    daemon.stop();
    assert_eq!(client.ready(&setup.credit_queue), Some(0));
    assert_eq!(client.ready(&setup.dead_queue), Some(0));
}

#[test]
fn a_table_that_is_locked_is_an_outage_and_no_messages_fault() {
    let place = Place::new(Kind::Postgres);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let daemon = setup.start_with(|command| {
        command.env("POINTSD_LEDGER__TIMEOUT", "1s");
    });
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    let held = hold_the_ledger(&place);
    let mut flow = Flow::new(12);
    flow.publish(&client, &setup, 50);
    daemon.wait_not_ready("ledger:");
    std::thread::sleep(Duration::from_secs(5));
    drop(held);
    daemon.wait_ready();
    work_off(&client, &setup, daemon);
    flow.assert_credited_once(&client, &setup);
}

#[test]
fn an_idle_daemon_notices_that_its_ledger_is_gone() {
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let daemon = setup.start();
    daemon.wait_ready();
    let DatabaseUrl::Sqlite(file) = place.parsed() else { panic!() };
    std::fs::remove_file(&file).unwrap();
    daemon.wait_not_ready("there is no ledger");
    daemon.stop();
    assert!(!file.exists(), "and no empty one was made in its place");
}

#[test]
fn a_ledger_file_that_is_replaced_takes_no_more_credits() {
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let daemon = setup.start();
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    let publish = |payment: u32| {
        let body = format!(r#"{{"paymentId":{payment},"userId":"u","integral":1}}"#).into_bytes();
        client.publish(&setup.exchange, &setup.key, [(body, BasicProperties::default())]);
    };
    publish(1);
    eventually("credited", || setup.json(&["balance", "u", "--json"])["balance"].eq(&1).then_some(()));
    let DatabaseUrl::Sqlite(file) = place.parsed() else { panic!() };
    let away = file.with_extension("away");
    std::fs::rename(&file, &away).unwrap();
    publish(2);
    daemon.wait_not_ready("there is no ledger");
    // What was put away is put back: with the log beside it, it is whole.
    std::fs::rename(&away, &file).unwrap();
    eventually("credited", || setup.json(&["balance", "u", "--json"])["balance"].eq(&2).then_some(()));
    daemon.wait_ready();
    work_off(&client, &setup, daemon);
    assert_eq!(setup.json(&["verify", "--json"])["credits"], 2);
}

#[test]
fn a_ledger_that_does_not_answer_is_waited_for_and_holds_up_no_exit() {
    // Accepts connections and never says a word.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://points@{}/points", mute.local_addr().unwrap());
    let setup = Setup::new(&rabbit::shared().url(), &url, "");
    let mut daemon = setup.start();
    daemon.wait_not_ready("ledger:");
    assert_eq!(daemon.get("/healthz").unwrap().0, 200);
    let begun = Instant::now();
    daemon.signal(Signal::TERM);
    assert!(daemon.wait().success());
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[test]
fn a_second_signal_leaves_at_once() {
    let place = Place::new(Kind::Postgres);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let mut daemon = setup.start();
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    let held = hold_the_ledger(&place);
    let mut flow = Flow::new(8);
    flow.publish(&client, &setup, 100);
    wait_until_in_flight(&daemon);
    daemon.signal(Signal::TERM);
    daemon.wait_not_ready("stopping");
    let begun = Instant::now();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(1));
    assert!(begun.elapsed() < Duration::from_secs(2));
    drop(held);
    work_off(&client, &setup, setup.start());
    flow.assert_credited_once(&client, &setup);
}
