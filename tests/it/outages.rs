//! A dependency that is down, slow or silent: nothing is lost, nothing is doubled, and nobody's attempts are spent.
//!
//! Messages flow all the while, and a fault counts only if it found unacknowledged deliveries: the daemon's log tells how
//! many it gave back. The only delay queue holds what is put into it for an hour, so that it is still there at the end.

use crate::support::{
    amqp::Client,
    daemon::{Daemon, Setup, Signal},
    eventually,
    flow::{Flow, Stream, work_off},
    ledger::{Kind, Place},
    postgres::Postgres,
    proxy::{Network, Proxy},
    rabbit::{self, Rabbit},
};
use diesel::{Connection, SqliteConnection, connection::SimpleConnection};
use lapin::BasicProperties;
use pointsd::database::DatabaseUrl;
use std::time::{Duration, Instant};

/// A daemon whose log also tells what it gave back.
fn start(setup: &Setup) -> Daemon {
    let daemon = setup.start_with(|command| {
        command.env("POINTSD_LOG__LEVEL", "debug");
    });
    daemon.wait_ready();
    daemon
}

/// How often unsettled deliveries went back, and how many.
fn given_back(daemon: &Daemon) -> usize {
    daemon.log().lines().filter(|line| line.contains("unsettled deliveries given back")).count()
}

fn lines_with(daemon: &Daemon, text: &str) -> usize {
    daemon.log().lines().filter(|line| line.contains(text)).count()
}

/// While an outage lasts: what is back in the queue has no mark of ours.
fn assert_no_attempt_is_spent(client: &Client, setup: &Setup) {
    eventually("deliveries are back in the queue", || client.ready(&setup.credit_queue)?.gt(&0).then_some(()));
    let looked_at = client.look(&setup.credit_queue, 50);
    assert!(!looked_at.is_empty());
    for properties in looked_at {
        let headers = properties.headers().as_ref().map(lapin::types::FieldTable::inner);
        assert!(headers.is_none_or(|headers| !headers.contains_key("x-pointsd-attempt")), "{headers:?}");
    }
}

fn assert_nobody_was_charged(daemon: &Daemon) {
    for outcome in ["retry", "exhausted", "rejected", "malformed", "conflict"] {
        assert_eq!(daemon.metric(&format!(r#"pointsd_messages_total{{queue="credit",outcome="{outcome}"}}"#)), 0.0);
    }
}

#[test]
fn postgresql_that_is_killed_again_and_again_costs_no_message_anything() {
    let mut postgres = Postgres::start();
    let setup = Setup::new(&rabbit::shared().url(), &postgres.database(), "");
    let daemon = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    let stream = Stream::begin(&rabbit::shared().url(), &setup, Flow::new(31));
    for (kill, down) in [10, 3, 3, 3, 3, 3].into_iter().enumerate() {
        daemon.wait_for("it credits", |daemon| {
            let before = daemon.metric("pointsd_points_credited_total");
            std::thread::sleep(Duration::from_millis(100));
            daemon.metric("pointsd_points_credited_total").gt(&before).then_some(())
        });
        let before = given_back(&daemon);
        postgres.kill();
        daemon.wait_not_ready("ledger:");
        daemon.wait_for("it struck: deliveries were not acknowledged", |daemon| {
            given_back(daemon).gt(&before).then_some(())
        });
        assert_eq!(daemon.metric(r#"pointsd_paused{dependency="ledger"}"#), 1.0);
        assert_no_attempt_is_spent(&client, &setup);
        std::thread::sleep(Duration::from_secs(down));
        assert_eq!(daemon.metric(r#"pointsd_in_flight{queue="credit"}"#), 0.0, "it holds nothing meanwhile");
        postgres.boot();
        daemon.wait_ready();
        assert_eq!(lines_with(&daemon, "WARN paused"), kill + 1, "one line at the start: {}", daemon.log());
        assert_eq!(lines_with(&daemon, "INFO resumed"), kill + 1, "and one at the end: {}", daemon.log());
    }
    let flow = stream.end();
    assert_nobody_was_charged(&daemon);
    work_off(&client, &setup, daemon);
    flow.assert_credited_once(&client, &setup);
}

#[test]
fn postgresql_that_accepts_and_never_answers_is_abandoned_and_waited_for() {
    let postgres = Postgres::start();
    let setup = Setup::new(&rabbit::shared().url(), &postgres.database(), "");
    let daemon = start(&setup);
    let mut other = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    let stream = Stream::begin(&rabbit::shared().url(), &setup, Flow::new(37));
    daemon.wait_for("it credits", |daemon| daemon.metric("pointsd_points_credited_total").gt(&0.0).then_some(()));
    let before = given_back(&daemon);
    postgres.signal(Signal::STOP);
    let begun = Instant::now();
    let mut signalled = None;
    while begun.elapsed() < Duration::from_secs(20) {
        let asked = Instant::now();
        assert_eq!(daemon.get("/healthz").unwrap().0, 200);
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
        // The ledger hangs for this one, too: by now it has given up its calls, and leaves at once.
        if signalled.is_none() && begun.elapsed() > Duration::from_secs(14) {
            other.signal(Signal::TERM);
            let asked = Instant::now();
            assert!(other.wait().success(), "{}", other.log());
            assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
            signalled = Some(());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(signalled.is_some());
    assert!(given_back(&daemon) > before, "it struck: deliveries were not acknowledged: {}", daemon.log());
    assert_eq!(daemon.get("/readyz").unwrap().0, 503);
    assert_no_attempt_is_spent(&client, &setup);
    postgres.signal(Signal::CONT);
    daemon.wait_ready();
    assert_eq!((lines_with(&daemon, "WARN paused"), lines_with(&daemon, "INFO resumed")), (1, 1), "{}", daemon.log());
    let flow = stream.end();
    assert_nobody_was_charged(&daemon);
    work_off(&client, &setup, daemon);
    flow.assert_credited_once(&client, &setup);
}

#[test]
fn a_daemon_leaves_in_time_when_its_ledger_stops_answering_in_the_middle_of_a_batch() {
    let postgres = Postgres::start();
    let setup = Setup::new(&rabbit::shared().url(), &postgres.database(), "");
    let mut daemon = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    let mut flow = Flow::new(39);
    postgres.signal(Signal::STOP);
    flow.publish(&client, &setup, 500);
    daemon.wait_for("deliveries are in flight", |daemon| {
        daemon.metric(r#"pointsd_in_flight{queue="credit"}"#).gt(&0.0).then_some(())
    });
    let begun = Instant::now();
    daemon.signal(Signal::TERM);
    assert!(daemon.wait().success(), "{}", daemon.log());
    // The deadline of the call that hangs, and not a thread's or a connection's.
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_no_attempt_is_spent(&client, &setup);
    postgres.signal(Signal::CONT);
    work_off(&client, &setup, setup.start());
    flow.assert_credited_once(&client, &setup);
}

#[test]
fn sqlite_that_another_process_locks_for_a_minute_costs_no_message_anything() {
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let daemon = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    let stream = Stream::begin(&rabbit::shared().url(), &setup, Flow::new(41));
    daemon.wait_for("it credits", |daemon| daemon.metric("pointsd_points_credited_total").gt(&0.0).then_some(()));
    let DatabaseUrl::Sqlite(file) = place.parsed() else { panic!() };
    let mut other = SqliteConnection::establish(file.to_str().unwrap()).unwrap();
    other.batch_execute("PRAGMA busy_timeout = 5000; BEGIN IMMEDIATE").unwrap();
    let locked_at = Instant::now();
    daemon.wait_not_ready("ledger:");
    assert_no_attempt_is_spent(&client, &setup);
    daemon.wait_for("it struck", |daemon| given_back(daemon).gt(&0).then_some(()));
    std::thread::sleep(Duration::from_secs(60).saturating_sub(locked_at.elapsed()));
    assert_eq!(daemon.get("/readyz").unwrap().0, 503, "all the while");
    other.batch_execute("ROLLBACK").unwrap();
    daemon.wait_ready();
    assert_eq!((lines_with(&daemon, "WARN paused"), lines_with(&daemon, "INFO resumed")), (1, 1), "{}", daemon.log());
    let flow = stream.end();
    assert_nobody_was_charged(&daemon);
    work_off(&client, &setup, daemon);
    flow.assert_credited_once(&client, &setup);
}

#[test]
fn an_alarm_of_the_broker_pauses_the_daemon_and_loses_nothing() {
    let rabbit = Rabbit::start(None);
    let place = Place::new(Kind::Postgres);
    let setup = Setup::new(&rabbit.url(), &place.url, "");
    let daemon = start(&setup);
    // Batches take so long that the alarm comes in the middle of some.
    place.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.003); RETURN NEW; END $$;
         CREATE TRIGGER slow BEFORE INSERT ON points_credits FOR EACH ROW EXECUTE FUNCTION slow()",
    );
    let client = Client::connect(&rabbit.url());
    let mut flow = Flow::new(43);
    for _ in 0..2 {
        flow.publish(&client, &setup, 6000);
        let held = std::thread::scope(|scope| {
            let alarm = scope.spawn(|| rabbit.ctl(&["set_vm_memory_high_watermark", "0.00001"]));
            let mut held = 0.0_f64;
            while !alarm.is_finished() {
                held = held.max(daemon.metric(r#"pointsd_in_flight{queue="credit"}"#));
            }
            held
        });
        assert!(held > 0.0, "it strikes: deliveries are not acknowledged");
        daemon.wait_not_ready("broker: blocked by an alarm of the broker");
        assert_eq!(daemon.metric(r#"pointsd_paused{dependency="broker"}"#), 1.0);
        // However long it lasts, it is not asked by more and more connections.
        std::thread::sleep(Duration::from_secs(5));
        let sockets = std::fs::read_dir(format!("/proc/{}/fd", daemon.child.id())).unwrap().flatten();
        let sockets = sockets.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        let sockets = sockets.filter(|link| link.to_string_lossy().starts_with("socket:")).count();
        assert!(sockets < 12, "{sockets} sockets");
        assert_eq!(daemon.get("/healthz").unwrap().0, 200);
        rabbit.ctl(&["set_vm_memory_high_watermark", "0.8"]);
        daemon.wait_ready();
        assert_eq!(daemon.metric(r#"pointsd_paused{dependency="broker"}"#), 0.0);
    }
    assert_nobody_was_charged(&daemon);
    place.execute("DROP TRIGGER slow ON points_credits");
    work_off(&client, &setup, daemon);
    flow.assert_credited_once(&client, &setup);
}

#[test]
fn an_alarm_while_a_message_is_parked_leaves_it_in_its_queue() {
    let rabbit = Rabbit::start(None);
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new(&rabbit.url(), &place.url, "");
    assert!(setup.run(&["topology", "declare"]).status.success());
    let client = Client::connect(&rabbit.url());
    client.publish(&setup.exchange, &setup.key, [(b"bad".to_vec(), BasicProperties::default())]);
    drop(client);
    rabbit.ctl(&["set_vm_memory_high_watermark", "0.00001"]);
    // It begins in the middle of the alarm, and a signal ends it there.
    let mut daemon = setup.start();
    daemon.wait_not_ready("broker: blocked by an alarm of the broker");
    let begun = Instant::now();
    daemon.signal(Signal::TERM);
    assert!(daemon.wait().success());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let daemon = setup.start();
    daemon.wait_not_ready("broker: blocked by an alarm of the broker");
    rabbit.ctl(&["set_vm_memory_high_watermark", "0.8"]);
    let client = Client::connect(&rabbit.url());
    eventually("it is parked", || client.ready(&setup.dead_queue)?.eq(&1).then_some(()));
    daemon.stop();
    assert_eq!(client.ready(&setup.credit_queue), Some(0));
}

#[test]
fn a_broker_that_is_killed_is_waited_for() {
    let mut rabbit = Rabbit::start(None);
    let place = Place::new(Kind::Postgres);
    let setup = Setup::new(&rabbit.url(), &place.url, "");
    let daemon = start(&setup);
    let mut flow = Flow::new(47);
    for _ in 0..3 {
        let held = crate::recovery::hold_the_ledger(&place);
        let client = Client::connect(&rabbit.url());
        flow.publish(&client, &setup, 2000);
        daemon.wait_for("it strikes: deliveries are in flight", |daemon| {
            daemon.metric(r#"pointsd_in_flight{queue="credit"}"#).gt(&0.0).then_some(())
        });
        rabbit.kill();
        drop(client);
        drop(held);
        daemon.wait_not_ready("broker");
        rabbit.boot();
        daemon.wait_ready();
    }
    assert_nobody_was_charged(&daemon);
    let client = Client::connect(&rabbit.url());
    work_off(&client, &setup, daemon);
    flow.assert_credited_once(&client, &setup);
}

/// A network between the daemon and one of its servers that fails in every way there is.
fn a_failing_network(proxy: &Proxy, daemon: Daemon, setup: &Setup, seed: u64) {
    let client = Client::connect(&rabbit::shared().url());
    let stream = Stream::begin(&rabbit::shared().url(), setup, Flow::new(seed));
    for network in [
        Network::Cut,
        Network::Stalled,
        Network::Slow(Duration::from_millis(30)),
        Network::Cut,
        Network::Slow(Duration::from_millis(5)),
        Network::Stalled,
    ] {
        let credited = |daemon: &Daemon| daemon.metric("pointsd_points_credited_total");
        let before = credited(&daemon);
        daemon.wait_for("it credits", |daemon| credited(daemon).gt(&before).then_some(()));
        let paused = lines_with(&daemon, "WARN paused");
        proxy.set(network);
        if let Network::Slow(_) = network {
            let before = credited(&daemon);
            std::thread::sleep(Duration::from_secs(2));
            daemon.wait_for("it goes on, slowly", |daemon| credited(daemon).gt(&before).then_some(()));
        } else {
            daemon.wait_for("it struck", |daemon| lines_with(daemon, "WARN paused").gt(&paused).then_some(()));
            std::thread::sleep(Duration::from_secs(1));
        }
        assert_eq!(daemon.get("/healthz").unwrap().0, 200);
        proxy.set(Network::Up);
        daemon.wait_ready();
    }
    let flow = stream.end();
    assert_nobody_was_charged(&daemon);
    work_off(&client, setup, daemon);
    flow.assert_credited_once(&client, setup);
}

#[test]
fn a_network_to_the_broker_that_is_cut_stalled_and_slow_loses_nothing() {
    let proxy = Proxy::to(rabbit::shared().port);
    let place = Place::new(Kind::Postgres);
    // A silence is noticed after two heartbeats.
    let url = format!("amqp://guest:guest@127.0.0.1:{}/%2f?heartbeat=3", proxy.port);
    let setup = Setup::new(&url, &place.url, "");
    a_failing_network(&proxy, start(&setup), &setup, 53);
}

#[test]
fn a_network_to_postgresql_that_is_cut_stalled_and_slow_loses_nothing() {
    let place = Place::new(Kind::Postgres);
    let DatabaseUrl::Postgres(url) = place.parsed() else { panic!() };
    let (server, database) = url.rsplit_once('/').unwrap();
    let port = server.rsplit_once(':').unwrap().1.parse().unwrap();
    let proxy = Proxy::to(port);
    let setup = Setup::new(
        &rabbit::shared().url(),
        &format!("postgres://points@127.0.0.1:{}/{database}", proxy.port),
        "[log]\nlevel = \"debug\"",
    );
    let daemon = setup.start_with(|command| {
        command.env("POINTSD_LEDGER__TIMEOUT", "3s");
    });
    daemon.wait_ready();
    a_failing_network(&proxy, daemon, &setup, 59);
}
