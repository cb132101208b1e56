//! What operators rely on: endpoints, metrics, systemd, TLS, the topology, clear words for what is wrong.

use crate::support::{
    amqp::{Client, text},
    daemon::{Setup, Signal, told},
    eventually,
    flow::{Flow, work_off},
    ledger::{Kind, Place},
    program,
    rabbit::{self, Rabbit},
    tls, unique,
};
use lapin::{BasicProperties, ExchangeKind, types::AMQPValue};
use std::{
    io::Write,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

#[test]
fn prometheus_accepts_the_metrics() {
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let daemon = setup.start();
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let stamped = BasicProperties::default().with_timestamp(now);
    client.publish(&setup.exchange, &setup.key, [(br#"{"paymentId":1,"userId":2,"integral":3}"#.to_vec(), stamped)]);
    daemon.wait_for("it is credited", |daemon| daemon.metric("pointsd_points_credited_total").eq(&3.0).then_some(()));
    daemon.wait_for("its age is known", |daemon| {
        daemon.get("/metrics")?.1.contains("pointsd_end_to_end_seconds_count 1").then_some(())
    });
    let (status, text) = daemon.get("/metrics").unwrap();
    assert_eq!(status, 200);
    for name in [
        "pointsd_messages_total",
        "pointsd_points_credited_total",
        "pointsd_dead_lettered_total",
        "pointsd_commit_duration_seconds_bucket",
        "pointsd_batch_size_bucket",
        "pointsd_end_to_end_seconds_bucket",
        "pointsd_in_flight",
        "pointsd_paused",
        "pointsd_broker_connected",
        "pointsd_build_info",
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
    ] {
        assert!(text.lines().any(|line| line.starts_with(name)), "{name} is missing:\n{text}");
    }
    let promtool = program("promtool", &["/usr/bin/promtool"], "prometheus");
    let mut check = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    assert_eq!(told(&output), "", "and has nothing to remark");
    assert_eq!(daemon.get("/elsewhere").unwrap().0, 404);
    daemon.stop();
}

#[test]
fn systemd_accepts_the_unit_and_rates_its_hardening() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/pointsd.service");
    let analyze = program("systemd-analyze", &["/usr/bin/systemd-analyze"], "systemd");
    let security =
        Command::new(&analyze).args(["security", "--offline=true", "--no-pager"]).arg(&unit).output().unwrap();
    let text = told(&security);
    let (_, level) = text.split_once("Overall exposure level for pointsd.service: ").expect(&text);
    let level: f64 = level.split(' ').next().unwrap().parse().unwrap();
    assert!(level <= 2.0, "{level}");

    let text = std::fs::read_to_string(&unit).unwrap();
    assert!(text.contains("\nStartLimitIntervalSec=0\n"), "systemd never gives up");
    for server in ["rabbitmq-server", "postgresql", "mysql", "mysqld", "mariadb"] {
        let after = text.lines().find(|line| line.starts_with("After=")).unwrap();
        assert!(after.contains(&format!(" {server}.service")), "{server}");
    }

    // It asks that the program be there: where the unit installs it, it is not.
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("pointsd.service");
    std::fs::write(&copy, text.replace("/usr/local/bin/pointsd", env!("CARGO_BIN_EXE_pointsd"))).unwrap();
    let verified = Command::new(&analyze).args(["verify", "--man=no"]).arg(&copy).output().unwrap();
    assert!(verified.status.success(), "{}", told(&verified));
    assert!(!told(&verified).contains("pointsd.service"), "nothing to remark: {}", told(&verified));
}

#[test]
fn systemd_is_told_when_it_is_ready_what_it_does_and_that_it_lives() {
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let socket = setup.folder.path().join("notify");
    let systemd = UnixDatagram::bind(&socket).unwrap();
    systemd.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    let mut daemon = setup.start_with(|command| {
        command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "300000");
    });
    let receive = || {
        let mut buffer = [0; 4096];
        let length = systemd.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let until = |wanted: &str| {
        let mut told = Vec::new();
        while !told.iter().any(|message: &String| message.lines().any(|line| line == wanted)) {
            told.push(receive());
        }
        told
    };
    until("READY=1");
    // Idle, it still turns.
    for _ in 0..3 {
        until("WATCHDOG=1");
    }
    // The queue is gone, and may not be declared: it waits, tells so, and still turns.
    let client = Client::connect(&rabbit::shared().url());
    client.delete_queue(&setup.credit_queue);
    until("STATUS=consuming");
    daemon.signal(Signal::TERM);
    let last = until("STOPPING=1");
    assert!(last.iter().any(|news| news.contains("STATUS=waiting: stopping")), "{last:?}");
    assert!(daemon.wait().success());
}

#[test]
fn a_loop_that_hangs_is_not_hidden_from_the_watchdog() {
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    // Abstract, as a container's systemd may have it.
    let name = format!("{}-{}", unique("pointsd"), std::process::id());
    let systemd = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    systemd.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
    let daemon = setup.start_with(|command| {
        command.env("NOTIFY_SOCKET", format!("@{name}")).env("WATCHDOG_USEC", "300000");
    });
    daemon.wait_ready();
    let mut buffer = [0; 4096];
    assert!(systemd.recv(&mut buffer).is_ok(), "an abstract socket is notified");
    daemon.signal(Signal::STOP);
    // A process that does not run feeds nothing: what was sent before is read, then there is silence.
    let begun = std::time::Instant::now();
    while systemd.recv(&mut buffer).is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(30), "a stopped daemon feeds the watchdog");
    }
    daemon.signal(Signal::CONT);
    daemon.stop();
}

#[test]
fn a_notification_that_cannot_be_sent_is_logged_once() {
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new("amqp://127.0.0.1:1/%2f", &place.url, "");
    let mut daemon = setup.start_with(|command| {
        command.env("NOTIFY_SOCKET", "@pointsd-nobody-listens").env("WATCHDOG_USEC", "30000");
    });
    daemon.wait_not_ready("cannot connect");
    daemon.signal(Signal::TERM);
    assert!(daemon.wait().success());
    assert_eq!(daemon.log().matches("systemd cannot be notified").count(), 1, "{}", daemon.log());
}

#[test]
fn a_clock_that_differs_from_the_ledgers_is_warned_of() {
    let place = Place::new(Kind::Postgres);
    // This function replaces the server's clock in this database.
    place.execute("CREATE SCHEMA skewed");
    place.execute(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = skewed, public, pg_catalog', current_database()); END $$",
    );
    let sqlite = Place::new(Kind::Sqlite);
    for (place, skew, ahead) in [(&place, "1 hour", 3600.0), (&place, "-1 minute", -60.0), (&sqlite, "", 0.0)] {
        if ahead != 0.0 {
            place.execute(&format!(
                "CREATE OR REPLACE FUNCTION skewed.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS \
                 $$ SELECT pg_catalog.clock_timestamp() + interval '{skew}' $$"
            ));
        }
        let setup = Setup::new("amqp://127.0.0.1:1/%2f", &place.url, "");
        let daemon = setup.start();
        daemon.wait_not_ready("cannot connect");
        daemon.wait_for(&format!("it is {ahead} seconds ahead"), |daemon| {
            let seconds = daemon.metric("pointsd_clock_skew_seconds");
            ((seconds - ahead).abs() < 20.0).then_some(())
        });
        let log = daemon.log();
        assert_eq!(
            log.matches("WARN clock skew between the ledger's server").count(),
            usize::from(ahead != 0.0),
            "{log}"
        );
        daemon.stop();
    }
}

#[test]
fn amqps_with_a_private_authority_and_a_client_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let (broker, client_tls) = tls::certificates(folder.path());
    let rabbit = Rabbit::start(Some(&broker));
    let url = format!("amqps://guest:guest@localhost:{}/%2f", rabbit.tls_port.unwrap());
    let place = Place::new(Kind::Sqlite);
    let trusting = format!(
        "ca_file = {:?}\ncert_file = {:?}\nkey_file = {:?}",
        client_tls.ca, client_tls.certificate, client_tls.key
    );
    let setup = Setup::new(&url, &place.url, &trusting);
    let daemon = setup.start();
    daemon.wait_ready();
    let client = Client::connect(&rabbit.url());
    let mut flow = Flow::new(11);
    flow.publish(&client, &setup, 300);
    work_off(&client, &setup, daemon);
    flow.assert_credited_once(&client, &setup);

    // Without the authority the broker is not believed.
    let place = Place::new(Kind::Sqlite);
    let distrusting = Setup::new(&url, &place.url, "");
    let daemon = distrusting.start();
    daemon.wait_not_ready("UnknownIssuer");
    daemon.stop();
}

#[test]
fn several_nodes_are_tried_in_turn() {
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let urls = format!("[\"amqp://127.0.0.1:1/%2f\", {:?}]", rabbit::shared().url());
    let config = std::fs::read_to_string(setup.config()).unwrap();
    let config: Vec<&str> = config.lines().filter(|line| !line.contains("amqp://")).collect();
    std::fs::write(
        setup.config(),
        config.join(
            "
",
        ),
    )
    .unwrap();
    let daemon = setup.start_with(|command| {
        command.env("POINTSD_BROKER__URLS", urls);
    });
    daemon.wait_ready();
    daemon.stop();
}

#[test]
fn a_login_that_is_refused_is_told_in_one_line_and_tried_again() {
    let port = rabbit::shared().port;
    for (url, said) in [
        (format!("amqp://guest:wr0ng@127.0.0.1:{port}/%2f"), "ACCESS_REFUSED"),
        (format!("amqp://guest:guest@127.0.0.1:{port}/nowhere"), "vhost nowhere not found"),
        ("amqp://guest:guest@127.0.0.1:1/%2f".to_owned(), "Connection refused"),
    ] {
        let place = Place::new(Kind::Sqlite);
        let setup = Setup::new(&url, &place.url, "");
        let daemon = setup.start();
        daemon.wait_not_ready(said);
        assert_eq!(daemon.metric(r#"pointsd_paused{dependency="broker"}"#), 1.0);
        let log = daemon.log();
        assert_eq!(log.lines().filter(|line| line.contains(said)).count(), 1, "{log}");
        assert!(!log.contains("wr0ng"), "{log}");
        daemon.stop();
    }
}

#[test]
fn a_queue_that_is_different_is_told_with_the_argument_and_what_to_do() {
    let url = rabbit::shared().url();
    let place = Place::new(Kind::Sqlite);
    let client = Client::connect(&url);
    let long = |text: &str| AMQPValue::LongString(text.into());

    let setup = Setup::new(&url, &place.url, "queue_type = \"classic\"");
    client.declare_queue(&setup.credit_queue, &[("x-queue-type", long("quorum"))]);
    let daemon = setup.start();
    let said = format!("queue {} exists with another x-queue-type: quorum there, classic here", setup.credit_queue);
    daemon.wait_not_ready(&said);
    daemon.wait_not_ready("delete and redeclare the queue, name another one, or set declare = false");
    daemon.stop();

    let other = Setup::new(&url, &place.url, "");
    let Setup { exchange, credit_queue, dead_queue, .. } = &other;
    client.declare_exchange(exchange, ExchangeKind::Fanout);
    client.declare_queue(
        dead_queue,
        &[("x-queue-type", long("quorum")), ("x-delivery-limit", AMQPValue::LongLongInt(5))],
    );
    client.declare_queue(credit_queue, &[("x-queue-type", long("quorum"))]);
    let limit = ("x-delivery-limit", AMQPValue::LongLongInt(1_000_000));
    let delay = |hours: i64| {
        [
            ("x-queue-type", long("quorum")),
            ("x-message-ttl", AMQPValue::LongLongInt(hours * 3_600_000)),
            ("x-dead-letter-exchange", long("")),
            ("x-dead-letter-routing-key", long(credit_queue)),
            ("x-dead-letter-strategy", long("at-least-once")),
            ("x-overflow", long("reject-publish")),
            limit.clone(),
        ]
    };
    client.declare_queue(&other.never_used(), &delay(1));
    let check = other.run(&["topology", "check"]);
    assert_eq!(check.status.code(), Some(1));
    let told = told(&check);
    for said in [
        format!("difference: exchange {exchange}: exists with another type: fanout there, direct here"),
        format!("difference: queue {dead_queue}: exists with another x-delivery-limit: 5 there, 1000000 here"),
        "each inspection of a message counts as a delivery".to_owned(),
        format!("difference: queue {credit_queue}: exists with another x-"),
        "not checked, because AMQP does not show them: bindings and policies".to_owned(),
    ] {
        assert!(told.contains(&said), "{said}\nis not in\n{told}");
    }
    // Declared by somebody else in his own way, and taken as it is.
    let foreign = other.command(&["topology", "check"]).env("POINTSD_BROKER__DECLARE", "false").output().unwrap();
    assert!(foreign.status.success() && crate::support::daemon::told(&foreign).contains("note: "));
    // But for a delay queue that brings nothing back when it should.
    client.delete_queue(&other.never_used());
    client.declare_queue(&other.never_used(), &delay(2));
    let foreign = other.command(&["topology", "check"]).env("POINTSD_BROKER__DECLARE", "false").output().unwrap();
    assert!(crate::support::daemon::told(&foreign).contains("exists with another x-message-ttl: 7200000 there"));
    assert_eq!(foreign.status.code(), Some(1));
}

#[test]
fn the_topology_is_printed_declared_and_checked() {
    let url = rabbit::shared().url();
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new(&url, &place.url, "");
    let printed = setup.json(&["topology", "print", "--json"]);
    assert_eq!(printed["queues"][1]["name"], setup.credit_queue);
    let missing = setup.run(&["topology", "check"]);
    assert_eq!(missing.status.code(), Some(1));
    assert_eq!(
        told(&missing).matches("is missing; create it with `pointsd topology declare`").count(),
        4,
        "{}",
        told(&missing)
    );
    assert!(setup.run(&["topology", "declare"]).status.success());
    assert!(setup.run(&["topology", "declare"]).status.success(), "again is the same");
    let check = setup.run(&["topology", "check"]);
    assert!(check.status.success(), "{}", told(&check));
    let client = Client::connect(&url);
    client.publish(&setup.exchange, &setup.key, [(b"{}".to_vec(), BasicProperties::default())]);
    assert_eq!(client.ready(&setup.credit_queue), Some(1), "bound");
}

#[test]
fn existing_queues_work_by_naming_them() {
    // As another program declared them: a classic queue on an exchange of its own, and any queue for the dead.
    let url = rabbit::shared().url();
    let place = Place::new(Kind::Sqlite);
    let client = Client::connect(&url);
    let setup = Setup::new(&url, &place.url, "");
    client.declare_exchange(&setup.exchange, ExchangeKind::Topic);
    client.declare_queue(&setup.credit_queue, &[]);
    client.bind(&setup.credit_queue, &setup.exchange, "#");
    let daemon = setup.start_with(|command| {
        command.env("POINTSD_BROKER__DECLARE", "false");
    });
    let (dead, delay) = (&setup.dead_queue, &setup.never_used());
    daemon.wait_not_ready(&format!("missing at the broker, and declare is false: queue {dead}, queue {delay}"));
    client.declare_queue(dead, &[]);
    client.declare_queue(delay, &[]);
    daemon.wait_ready();
    client.publish(
        &setup.exchange,
        &unique("any.key"),
        [(br#"{"paymentId":1,"userId":2,"integral":3}"#.to_vec(), BasicProperties::default())],
    );
    eventually("credited", || setup.json(&["balance", "2", "--json"])["balance"].eq(&3).then_some(()));
    daemon.stop();
}

#[test]
fn a_message_that_reaches_the_delivery_limit_ends_in_the_dead_queue() {
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "delivery_limit = 3");
    assert!(setup.run(&["topology", "declare"]).status.success());
    let client = Client::connect(&rabbit::shared().url());
    client.publish(&setup.exchange, &setup.key, [(b"{}".to_vec(), BasicProperties::default())]);
    // As a daemon would that crashes over it again and again.
    eventually("it leaves the queue", || (!client.take_and_return(&setup.credit_queue)).then_some(()));
    let died = eventually("it is in the dead queue", || client.take(&setup.dead_queue));
    assert_eq!(died.delivery.data, b"{}");
    assert_eq!(text(&died, "x-first-death-reason"), Some("delivery_limit".into()));
}

#[test]
fn idle_visitors_do_not_use_up_the_process() {
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let daemon = setup.start();
    daemon.wait_ready();
    let idle: Vec<_> = (0..200).map(|_| std::net::TcpStream::connect(("127.0.0.1", daemon.port)).unwrap()).collect();
    std::thread::sleep(Duration::from_millis(300));
    let files = std::fs::read_dir(format!("/proc/{}/fd", daemon.child.id())).unwrap().count();
    assert!(files < 150, "{files} open files");
    // They are sent away, and the next one is served, though the idle ones are still there.
    daemon.wait_for("it answers again", |daemon| daemon.get("/healthz")?.0.eq(&200).then_some(()));
    drop(idle);
    daemon.stop();
}

#[test]
fn a_stream_as_a_consumed_queue_is_refused_with_a_reason() {
    let client = Client::connect(&rabbit::shared().url());
    for declare in [true, false] {
        let place = Place::new(Kind::Sqlite);
        let setup = Setup::new(&rabbit::shared().url(), &place.url, &format!("declare = {declare}"));
        client.declare_queue(&setup.credit_queue, &[("x-queue-type", AMQPValue::LongString("stream".into()))]);
        if !declare {
            // Everything else is as it should be.
            client.declare_queue(&setup.dead_queue, &[]);
            client.declare_queue(&setup.never_used(), &[]);
        }
        let checked = setup.run(&["topology", "check"]);
        let said = format!("difference: queue {}: is a stream", setup.credit_queue);
        assert!(checked.status.code() == Some(1) && told(&checked).contains(&said), "{}", told(&checked));
        let daemon = setup.start();
        daemon.wait_not_ready("is a stream, which keeps acknowledged messages");
        daemon.stop();
        client.delete_queue(&setup.credit_queue);
    }
}

/// Publishes what a foreign client of another language may and lapin cannot send: a body of two bytes with these
/// property flags and values, written to the socket by hand on a connection that does no more than that.
pub fn publish_raw(port: u16, exchange: &str, key: &str, flags: u16, properties: &[u8]) {
    publish_raw_body(port, exchange, key.as_bytes(), flags, properties, b"{}");
}

/// The same with a body, and with a key of any bytes.
pub fn publish_raw_body(port: u16, exchange: &str, key: &[u8], flags: u16, properties: &[u8], body: &[u8]) {
    use std::io::Read;
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let short = |text: &[u8]| [&[u8::try_from(text.len()).unwrap()][..], text].concat();
    let long = |text: &[u8]| [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text].concat();
    let frame = |kind: u8, channel: u16, payload: &[u8]| {
        let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[kind][..], &channel.to_be_bytes(), &size, payload, &[0xce]].concat()
    };
    let method = |channel: u16, class: u16, method: u16, arguments: &[u8]| {
        frame(1, channel, &[&class.to_be_bytes()[..], &method.to_be_bytes(), arguments].concat())
    };
    // Reads one frame, and expects this method.
    let expect = |stream: &mut std::net::TcpStream, class: u16, method: u16| {
        let mut head = [0; 7];
        stream.read_exact(&mut head).unwrap();
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let mut payload = vec![0; size + 1];
        stream.read_exact(&mut payload).unwrap();
        assert_eq!(payload[..4], [class.to_be_bytes(), method.to_be_bytes()].concat());
    };
    stream.write_all(b"AMQP\x00\x00\x09\x01").unwrap();
    expect(&mut stream, 10, 10);
    let start_ok = [&[0; 4][..], &short(b"PLAIN"), &long(b"\0guest\0guest"), &short(b"en_US")].concat();
    stream.write_all(&method(0, 10, 11, &start_ok)).unwrap();
    expect(&mut stream, 10, 30);
    stream.write_all(&method(0, 10, 31, &[0, 10, 0, 2, 0, 0, 0, 0])).unwrap();
    stream.write_all(&method(0, 10, 40, &[&short(b"/")[..], &[0, 0]].concat())).unwrap();
    expect(&mut stream, 10, 41);
    stream.write_all(&method(1, 20, 10, &[0])).unwrap();
    expect(&mut stream, 20, 11);
    let publish = [&[0, 0][..], &short(exchange.as_bytes()), &short(key), &[0]].concat();
    stream.write_all(&method(1, 60, 40, &publish)).unwrap();
    // Content header: class 60, weight 0, the body's size, the properties.
    let size = u64::try_from(body.len()).unwrap().to_be_bytes();
    let header = [&[0, 60, 0, 0][..], &size, &flags.to_be_bytes(), properties].concat();
    stream.write_all(&frame(2, 1, &header)).unwrap();
    for part in body.chunks(131_072 - 8) {
        stream.write_all(&frame(3, 1, part)).unwrap();
    }
    // channel.close is answered after all that came before it.
    stream.write_all(&method(1, 20, 40, &[0, 200, 0, 0, 0, 0, 0])).unwrap();
    expect(&mut stream, 20, 41);
}

/// A header `deep`, arrays in arrays, built from the inside out: for [`publish_raw`], with the flag 0x2000.
pub fn nested_headers(depth: usize) -> Vec<u8> {
    let mut nested = Vec::new();
    for _ in 0..depth {
        let size = u32::try_from(nested.len()).unwrap().to_be_bytes();
        nested = [&b"A"[..], &size, &nested].concat();
    }
    let table = [&b"\x04deep"[..], &nested].concat();
    [&u32::try_from(table.len()).unwrap().to_be_bytes()[..], &table].concat()
}

#[test]
fn headers_nested_as_deep_as_a_frame_allows_are_read_and_parked() {
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let daemon = setup.start();
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    let headers = nested_headers(25_000);
    assert!(headers.len() < 131_000, "they fit into a frame");
    publish_raw(rabbit::shared().port, &setup.exchange, &setup.key, 0x2000, &headers);
    daemon.wait_for("it is parked", |_| client.ready(&setup.dead_queue)?.eq(&1).then_some(()));
    daemon.stop();
}

#[test]
fn the_files_of_a_sqlite_ledger_are_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(folder.path().join("real.db"), folder.path().join("link.db")).unwrap();
    let url = format!("sqlite:{}", folder.path().join("link.db").display());
    let setup = Setup::new(&rabbit::shared().url(), &url, "");
    let daemon = setup.start();
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    let body = br#"{"paymentId":1,"userId":"u","integral":1}"#.to_vec();
    client.publish(&setup.exchange, &setup.key, [(body, BasicProperties::default())]);
    daemon.wait_for("it credits", |daemon| daemon.metric("pointsd_points_credited_total").gt(&0.0).then_some(()));
    for file in ["real.db", "real.db-wal", "real.db.lock"] {
        let mode = std::fs::metadata(folder.path().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert_eq!(mode.permissions().mode() & 0o777, 0o600, "{file}");
    }
    daemon.stop();
}

#[test]
fn only_the_threads_that_read_headers_have_deep_stacks() {
    let place = Place::new(Kind::Postgres);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "[events]\nenabled = true");
    let daemon = setup.start();
    daemon.wait_ready();
    daemon.wait_for("the outbox is counted", |daemon| daemon.metric("pointsd_outbox_rows").eq(&0.0).then_some(()));
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", daemon.child.id())).unwrap();
    let mebibytes = |line: &str| {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        (u64::from_str_radix(to, 16).unwrap() - u64::from_str_radix(from, 16).unwrap()) >> 20
    };
    let is_stack = |line: &&str| line.contains(" rw-p 00000000 00:00 0");
    let deep = maps.lines().filter(is_stack).filter(|line| mebibytes(line) >= 96).count();
    let threads = std::fs::read_dir(format!("/proc/{}/task", daemon.child.id())).unwrap().count();
    eprintln!("{deep} of {threads} threads have deep stacks");
    // lapin's three, two workers, the first one, the pool's, and one or two that resolve names; all of them before.
    assert!(deep <= 11 && deep < threads, "{deep} of {threads} threads: {maps}");
    daemon.stop();
}

#[test]
fn logs_are_lines_of_json_when_asked_for() {
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "[log]\nformat = \"json\"");
    let daemon = setup.start();
    daemon.wait_ready();
    let log = daemon.log();
    daemon.stop();
    assert!(log.lines().count() >= 2, "{log}");
    for line in log.lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(event["timestamp"].is_string() && event["message"].is_string(), "{line}");
    }
}

#[test]
fn logs_go_to_the_journal_when_asked_for() {
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "[log]\nformat = \"journald\"");
    // The daemon sees a /run of its own, in which this test is the journal.
    let script = format!(
        "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && \
         until [ -S /run/systemd/journal/socket ]; do sleep 0.05; done; exec {} run --config {}",
        crate::support::daemon::POINTSD,
        setup.config().display()
    );
    let daemon = setup.start_with_mounts(&script);
    let socket = format!("/proc/{}/root/run/systemd/journal/socket", daemon.child.id());
    let journal = eventually("the folder is there", || UnixDatagram::bind(&socket).ok());
    journal.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    let mut buffer = vec![0; 65_536];
    eventually("it logs", || {
        let length = journal.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).contains("pointsd started").then_some(())
    });
    daemon.wait_ready();
    daemon.stop();
}

#[test]
fn an_endpoint_that_cannot_be_had_ends_the_start() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let output =
        setup.command(&["run"]).env("POINTSD_HTTP__LISTEN", taken.local_addr().unwrap().to_string()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(told(&output).contains("http.listen = "), "{}", told(&output));
}

#[test]
fn every_command_closes_its_connections_in_order_also_after_a_failure() {
    const CUT_OFF: &str = "unexpectedly closed";
    let rabbit = Rabbit::start(None);
    let place = Place::new(Kind::Sqlite);
    let source = "[pay_status]\nsource = \"http\"\n[pay_status.http]\nurl = \"http://127.0.0.1:1/{payment_id}\"\n\
                  status_pointer = \"/status\"\npaid = [\"paid\"]\npending = [\"new\"]\nclosed = [\"closed\"]\n";
    let setup = Setup::new(&rabbit.url(), &place.url, source);
    place.open().migrate().unwrap();
    // A client that vanishes is in the log.
    publish_raw(rabbit.port, "", "nowhere", 0, &[]);
    eventually("the broker logs it", || (rabbit.logged(CUT_OFF) > 0).then_some(()));
    let before = rabbit.logged(CUT_OFF);

    let lines = setup.folder.path().join("lines");
    std::fs::write(&lines, "{\"paymentId\":1,\"userId\":2,\"integral\":3}\n").unwrap();
    let broken = setup.folder.path().join("broken");
    std::fs::write(&broken, b"{\"paymentId\":1,\"userId\":2,\"integral\":3}\n\xff\xfe\n").unwrap();
    let (lines, broken) = (lines.to_str().unwrap(), broken.to_str().unwrap());
    assert!(setup.run(&["replay", lines]).status.success());
    let unused = setup.retry_queue("7s");
    // Queues that are missing make most of these fail; the second time round they succeed.
    let commands: [&[&str]; 15] = [
        &["publish", lines],
        &["publish", broken],
        &["publish", "/nowhere/at/all"],
        &["dead", "list"],
        &["dead", "show"],
        &["dead", "export"],
        &["dead", "export", "/nowhere/at/all"],
        &["dead", "requeue", "--all", "--canary-wait", "10ms"],
        &["dead", "drop", "--all", "--yes"],
        &["payment", "1"],
        &["topology", "check"],
        &["topology", "retire", &unused],
        &["topology", "retire", "no.delay.queue"],
        &["reconcile", "--apply", "--older-than", "0s"],
        &["topology", "declare"],
    ];
    let mut failures = 0;
    for _ in 0..2 {
        for command in commands {
            let output = setup.run(command);
            assert_ne!(output.status.code(), Some(2), "{command:?}: {}", told(&output));
            failures += u32::from(!output.status.success());
        }
    }
    assert!(failures > 8, "{failures}");
    // The log is written in order: what comes before this is in it.
    publish_raw(rabbit.port, "", "nowhere", 0, &[]);
    eventually("the log has come so far", || (rabbit.logged(CUT_OFF) > before).then_some(()));
    assert_eq!(rabbit.logged(CUT_OFF), before + 1);
}
