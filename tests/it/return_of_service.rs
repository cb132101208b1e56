//! How soon the daemon has its first effect after a dependency returns, after outages of growing length in a row; and what
//! outages cost a message's delivery count.

use crate::support::{
    amqp::Client,
    daemon::{Daemon, Setup},
    gateway::{Gateway, Reply},
    ledger::{Kind, Place},
    postgres,
    proxy::{Network, Proxy},
    rabbit,
};
use lapin::{BasicProperties, types::AMQPValue};
use std::time::{Duration, Instant};

/// The lengths of the outages. The long form takes longer ones.
fn outages() -> Vec<Duration> {
    let long = std::env::var_os("LONG").is_some();
    let seconds: &[u64] = if long { &[1, 3, 10, 60, 1, 3, 10] } else { &[1, 3, 6, 1] };
    seconds.iter().map(|seconds| Duration::from_secs(*seconds)).collect()
}

/// The goal for the first effect after the return.
const GOAL: Duration = Duration::from_secs(2);

fn body(payment: u64) -> (Vec<u8>, BasicProperties) {
    let body = format!(r#"{{"paymentId":"{payment}","userId":"u","integral":1}}"#);
    (body.into_bytes(), BasicProperties::default().with_delivery_mode(2))
}

/// A port of a URL that leads to a proxy.
fn through(proxy: &Proxy, url: &str, port: u16) -> String {
    url.replace(&format!(":{port}"), &format!(":{}", proxy.port))
}

fn port_of(url: &str) -> u16 {
    let after = url.rsplit_once("127.0.0.1:").unwrap().1;
    after.split('/').next().unwrap().parse().unwrap()
}

/// Cuts the proxy once for each outage, with messages that wait, and measures the time from its return to the first effect.
fn measure(
    daemon: &Daemon,
    proxy: &Proxy,
    dependency: &str,
    mut publish: impl FnMut(u64),
    effect: impl Fn(&Daemon) -> f64,
) {
    let mut times = Vec::new();
    for (round, outage) in (0_u64..).zip(outages()) {
        proxy.set(Network::Cut);
        publish(round);
        daemon.wait_for("the outage is noticed", |daemon| {
            daemon.metric(&format!(r#"pointsd_paused{{dependency="{dependency}"}}"#)).eq(&1.0).then_some(())
        });
        std::thread::sleep(outage);
        let before = effect(daemon);
        proxy.set(Network::Up);
        let returned = Instant::now();
        daemon.wait_for("the first effect", |daemon| (effect(daemon) > before).then_some(()));
        times.push(returned.elapsed());
    }
    eprintln!("{dependency}: first effect after {times:?}");
    times.sort();
    let late = times[(times.len() * 95).div_ceil(100) - 1];
    assert!(late < GOAL, "{dependency}: {times:?}; {}", daemon.log());
}

fn credited(daemon: &Daemon) -> f64 {
    daemon.metric(r#"pointsd_messages_total{queue="credit",outcome="credited"}"#)
}

#[test]
fn the_first_credit_follows_the_return_of_the_ledger_within_two_seconds() {
    let url = postgres::shared().database();
    let proxy = Proxy::to(port_of(&url));
    let setup = Setup::new(&rabbit::shared().url(), &through(&proxy, &url, port_of(&url)), "");
    let daemon = setup.start();
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    let publish = |round: u64| {
        client.publish(&setup.exchange, &setup.key, (0..100).map(|id| body(round * 100 + id)));
    };
    measure(&daemon, &proxy, "ledger", publish, credited);
    daemon.wait_for("all are credited", |daemon| (credited(daemon) >= 100.0 * outages().len() as f64).then_some(()));
    assert_eq!(client.ready(&setup.never_used()), Some(0), "no attempt was spent");
    daemon.stop();
}

#[test]
fn the_first_credit_follows_the_return_of_the_broker_within_two_seconds() {
    let place = Place::new(Kind::Sqlite);
    let url = rabbit::shared().url();
    let proxy = Proxy::to(rabbit::shared().port);
    let setup = Setup::new(&through(&proxy, &url, rabbit::shared().port), &place.url, "");
    let daemon = setup.start();
    daemon.wait_ready();
    let client = Client::connect(&url);
    let publish = |round: u64| {
        client.publish(&setup.exchange, &setup.key, (0..100).map(|id| body(round * 100 + id)));
    };
    measure(&daemon, &proxy, "broker", publish, credited);
    daemon.wait_for("all are credited", |daemon| (credited(daemon) >= 100.0 * outages().len() as f64).then_some(()));
    daemon.stop();
}

#[test]
fn the_first_check_follows_the_return_of_the_payment_service_within_two_seconds() {
    let gateway = Gateway::start(|_, _| Reply::trade("TRADE_SUCCESS"));
    let proxy = Proxy::to(gateway.port);
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let more = format!(
        "[compensation]\nfirst = \"100ms\"\ndelays = [\"1h\"]\n[pay_status]\nsource = \"http\"\n[pay_status.http]\n\
         url = \"http://127.0.0.1:{}/{{payment_id}}\"\nstatus_pointer = \"/data/status\"\npaid = [\"TRADE_SUCCESS\"]\n\
         pending = [\"WAIT_BUYER_PAY\"]\nclosed = [\"TRADE_CLOSED\"]\n",
        proxy.port
    );
    let text = std::fs::read_to_string(setup.config()).unwrap();
    std::fs::write(setup.config(), format!("{text}\n{more}")).unwrap();
    let daemon = setup.start();
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    let publish = |round: u64| {
        client.publish(&setup.exchange, &setup.key, (0..100).map(|id| body(round * 100 + id)));
    };
    let verified = |daemon: &Daemon| daemon.metric(r#"pointsd_checks_total{status="paid",step="verify"}"#);
    measure(&daemon, &proxy, "pay_status", publish, verified);
    daemon.wait_for("all are verified", |daemon| (verified(daemon) >= 100.0 * outages().len() as f64).then_some(()));
    assert_eq!(client.ready(&setup.dead_queue), Some(0));
    daemon.stop();
}

/// The queues of a setup, with a credit queue that has a delivery limit and a dead-letter exchange, as others declare them.
fn declare_with_limit(client: &Client, setup: &Setup, limit: i32) {
    let long = |text: &str| AMQPValue::LongString(text.into());
    let quorum = ("x-queue-type", long("quorum"));
    let limit = ("x-delivery-limit", AMQPValue::LongInt(limit));
    let dead = [("x-dead-letter-exchange", long("")), ("x-dead-letter-routing-key", long(&setup.dead_queue))];
    client.declare_queue(&setup.dead_queue, std::slice::from_ref(&quorum));
    client.declare_queue(&setup.never_used(), std::slice::from_ref(&quorum));
    client.declare_queue(&setup.credit_queue, &[[quorum, limit].as_slice(), dead.as_slice()].concat());
    client.declare_exchange(&setup.exchange, lapin::ExchangeKind::Direct);
    client.bind(&setup.credit_queue, &setup.exchange, &setup.key);
}

/// What a delivery limit of 5 leaves of 300 good messages while the ledger fails again and again: all of them.
#[test]
fn a_ledger_that_fails_again_and_again_spends_no_more_than_the_count_of_one_message_at_a_time() {
    let url = postgres::shared().database();
    let setup = Setup::new(&rabbit::shared().url(), &url, "declare = false");
    let client = Client::connect(&rabbit::shared().url());
    declare_with_limit(&client, &setup, 5);
    let daemon = setup.start();
    daemon.wait_ready();
    assert!(daemon.log().contains("its delivery limit is 5"), "a low limit is named at the start: {}", daemon.log());
    assert!(!daemon.log().contains("dead-letter exchange"), "it has one: {}", daemon.log());
    // Probes succeed, and commits fail: the trigger refuses what is no probe.
    let fail = "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$;
                CREATE TRIGGER fail BEFORE INSERT ON points_credits FOR EACH ROW WHEN (NEW.payment_id ~ '^[0-9]') EXECUTE FUNCTION fail()";
    postgres::Postgres::execute(&url, fail);
    client.publish(&setup.exchange, &setup.key, (0..300).map(body));
    let begun = Instant::now();
    // More sessions than the limit would allow with all of them in the daemon's hands.
    while begun.elapsed() < Duration::from_secs(6) {
        std::thread::sleep(Duration::from_millis(200));
    }
    let paused = daemon.metric(r#"pointsd_paused{dependency="ledger"}"#);
    assert!(paused == 1.0 || daemon.log().contains("paused"), "it struck: {}", daemon.log());
    postgres::Postgres::execute(&url, "DROP TRIGGER fail ON points_credits");
    daemon.wait_for("the messages are credited", |daemon| {
        let dead = f64::from(client.ready(&setup.dead_queue)?);
        (credited(daemon) + dead >= 300.0).then_some(())
    });
    let dead = client.ready(&setup.dead_queue).unwrap();
    eprintln!("{dead} of 300 went to the dead queue");
    assert!(dead <= 1, "{dead}");
    daemon.stop();
}

/// A ledger that works for half a second at a time, and a queue with a delivery limit of 3: after each outage no more
/// deliveries are held than were settled since, so that a backlog moves on and leaves almost nothing in the dead queue.
#[test]
fn a_ledger_that_flaps_under_a_backlog_spends_few_delivery_counts() {
    const MESSAGES: u64 = 8000;
    let url = postgres::shared().database();
    let proxy = Proxy::to(port_of(&url));
    let setup = Setup::new(&rabbit::shared().url(), &through(&proxy, &url, port_of(&url)), "declare = false");
    let client = Client::connect(&rabbit::shared().url());
    declare_with_limit(&client, &setup, 3);
    let daemon = setup.start();
    daemon.wait_ready();
    // A ledger at its limit: the backlog lasts longer than the flapping.
    let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.001); RETURN NEW; END $$;
                CREATE TRIGGER slow BEFORE INSERT ON points_credits FOR EACH ROW EXECUTE FUNCTION slow()";
    postgres::Postgres::execute(&url, slow);
    client.publish(&setup.exchange, &setup.key, (0..MESSAGES).map(body));
    let paused = |daemon: &Daemon| daemon.metric(r#"pointsd_paused{dependency="ledger"}"#).eq(&1.0).then_some(());
    let resumed = |daemon: &Daemon| daemon.metric(r#"pointsd_paused{dependency="ledger"}"#).eq(&0.0).then_some(());
    for _ in 0..12 {
        proxy.set(Network::Cut);
        daemon.wait_for("the outage is noticed", paused);
        proxy.set(Network::Up);
        daemon.wait_for("the ledger is back", resumed);
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(client.ready(&setup.credit_queue).unwrap() > 0, "the backlog outlasted the flapping");
    postgres::Postgres::execute(&url, "DROP TRIGGER slow ON points_credits");
    daemon.wait_for("the backlog is gone", |daemon| {
        let dead = f64::from(client.ready(&setup.dead_queue)?);
        // A commit whose answer was cut off is a duplicate when its message comes again.
        let duplicate = daemon.metric(r#"pointsd_messages_total{queue="credit",outcome="duplicate"}"#);
        (credited(daemon) + duplicate + dead >= MESSAGES as f64).then_some(())
    });
    let dead = client.ready(&setup.dead_queue).unwrap();
    eprintln!("{dead} of {MESSAGES} went to the dead queue");
    assert!(dead <= 8, "{dead} of {MESSAGES}");
    daemon.stop();
}

#[test]
fn a_low_delivery_limit_and_a_missing_dead_letter_exchange_are_named_with_every_other_difference() {
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "declare = false");
    let client = Client::connect(&rabbit::shared().url());
    let long = |text: &str| AMQPValue::LongString(text.into());
    let limit = |limit| [("x-queue-type", long("quorum")), ("x-delivery-limit", AMQPValue::LongInt(limit))];
    client.declare_queue(&setup.credit_queue, &limit(3));
    client.declare_queue(&setup.dead_queue, &limit(1_000_000));
    client.declare_queue(&setup.never_used(), &[("x-queue-type", long("quorum"))]);
    client.declare_exchange(&setup.exchange, lapin::ExchangeKind::Direct);
    let checked = crate::support::daemon::told(&setup.run(&["topology", "check"]));
    let of_queue = |line: &&str| line.contains(&format!("queue {}:", setup.credit_queue));
    let lines: Vec<&str> = checked.lines().filter(of_queue).collect();
    for argument in ["x-delivery-limit", "x-dead-letter-exchange", "x-dead-letter-strategy", "x-overflow"] {
        assert!(lines.iter().any(|line| line.contains(argument)), "{argument}: {checked}");
    }
    assert!(!checked.contains("declare = false"), "it is set already: {checked}");
    let daemon = setup.start();
    daemon.wait_ready();
    let log = daemon.log();
    assert!(log.contains("its delivery limit is 3") && log.contains("has no dead-letter exchange"), "{log}");
    daemon.stop();
}

/// lapin alone waits for ever when the stream ends there.
#[test]
fn a_broker_that_leaves_in_the_middle_of_a_handshake_is_connected_to_again() {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
    };
    let broker = rabbit::shared().port;
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let met = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&met);
    // The first connections get `connection.start` and an end; all others are passed on.
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut server = TcpStream::connect(("127.0.0.1", broker)).unwrap();
            if counted.fetch_add(1, Ordering::Relaxed) < 3 {
                let mut bytes = [0; 4096];
                let count = client.read(&mut bytes).unwrap();
                server.write_all(&bytes[..count]).unwrap();
                let count = server.read(&mut bytes).unwrap();
                client.write_all(&bytes[..count]).unwrap();
                continue;
            }
            for (mut from, mut to) in [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)] {
                std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            }
        }
    });
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new(&format!("amqp://guest:guest@127.0.0.1:{port}/%2f"), &place.url, "");
    let daemon = setup.start();
    let begun = Instant::now();
    daemon.wait_ready();
    assert!(met.load(Ordering::Relaxed) > 3, "it struck");
    // An attempt that hangs all the same is left behind after ten seconds.
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}: {}", begun.elapsed(), daemon.log());
    daemon.stop();
}
