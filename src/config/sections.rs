//! The sections of the configuration: each key with its default and rule, and the combinations that are refused.

use super::{ReadFrom, Settings, compensation::compensation, pay_status, sources};
use crate::{
    broker::{BrokerSettings, BrokerUrl, Identity, QueueType, TlsFiles, check_delay_queue, retry_queue},
    config::{
        common::{delays, duration, name, number, pem},
        masking::masked,
        reader::Reader,
        value::Setting,
    },
    database::DatabaseUrl,
    domain::{
        check_schedule::CheckPolicy,
        credit::{MAX_BATCH, MAX_POINTS_LIMIT},
        field_paths::FieldPaths,
        id_rule::IdRule,
        malformed::Field,
        message::Format,
        retry::RetryPolicy,
    },
    ledger::settings::{EventsSettings, LedgerSettings},
    observe::settings::{HealthSettings, HttpSettings, LogFormat, LogLevel, LogSettings},
    pay_status::settings::PayStatusSettings,
    pipeline::settings::RetrySettings,
};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

/// Reads every key. Returns `None` after a fault that leaves the settings incomplete.
pub(super) fn all(reader: &mut Reader, state_directory: Option<&Path>) -> Option<Settings> {
    let shutdown_timeout = duration(reader, "shutdown_timeout", 25);
    let retry = RetrySettings {
        immediate_attempts: number(reader, "retry.immediate_attempts", 3, 1..=20),
        policy: retry_policy(reader),
    };
    let compensation = compensation(reader);
    let broker = broker(reader, &retry.policy, &compensation.policy);
    let mut message = message(reader);
    let ledger = ledger(reader, state_directory);
    let ledger_url = ledger.as_ref().map(|ledger| &ledger.url);
    let context = pay_status::Context { ledger: ledger_url, state_directory, max_points: message.max_points };
    let pay_status = pay_status::pay_status(reader, context);
    message.payment_ids = pay_status.as_ref().map_or(IdRule::Any, PayStatusSettings::payment_ids);
    let events = events(reader);
    let sources = sources::all(
        reader,
        &sources::Context {
            broker: broker.as_ref(),
            retry: &retry.policy,
            compensation: &compensation,
            pay_status: pay_status.as_ref(),
            events: events.exchange.as_deref(),
        },
    );
    let health = HealthSettings { stalled_after: duration(reader, "health.stalled_after", 30) };
    let http = HttpSettings { listen: reader.setting("http.listen", SocketAddr::from((Ipv4Addr::LOCALHOST, 10_187))) };
    let log = LogSettings {
        level: reader.setting("log.level", LogLevel::Info),
        format: reader.setting("log.format", LogFormat::Text),
    };
    let (effective, read_from) = (BTreeMap::new(), ReadFrom::default());
    Some(Settings {
        shutdown_timeout,
        broker: broker?,
        message,
        ledger: ledger?,
        retry,
        compensation,
        pay_status: pay_status?,
        sources: sources?,
        events,
        health,
        http,
        log,
        read_from,
        effective,
    })
}

fn events(reader: &mut Reader) -> EventsSettings {
    let enabled = reader.setting("events.enabled", false);
    let exchange = name(reader, "events.exchange", "points.events");
    EventsSettings { exchange: enabled.then_some(exchange) }
}

fn broker(reader: &mut Reader, retry: &RetryPolicy, checks: &CheckPolicy) -> Option<BrokerSettings> {
    let (urls, urls_file) = broker_urls(reader);
    let tls = tls(reader, urls.iter().any(BrokerUrl::is_tls));
    let exchange = name(reader, "broker.exchange", "points");
    let routing_key = name(reader, "broker.routing_key", "points.credit");
    let credit_queue = name(reader, "broker.credit_queue", "points.credit");
    let dead_queue = name(reader, "broker.dead_queue", "points.dead");
    let check_queue = name(reader, "broker.check_queue", "points.check");
    distinct_queues(reader, [&credit_queue, &check_queue, &dead_queue], retry, checks);
    let queue_type = reader.setting("broker.queue_type", QueueType::Quorum);
    let delivery_limit = number(reader, "broker.delivery_limit", 1000, 1..=1_000_000);
    let declare = reader.setting("broker.declare", true);
    let prefetch = match queue_type {
        QueueType::Quorum => number(reader, "broker.prefetch", 2000, 1..=2000),
        QueueType::Classic => number(reader, "broker.prefetch", 2000, 1..=65_535),
    };
    (!urls.is_empty()).then_some(BrokerSettings {
        urls,
        urls_file,
        tls,
        exchange,
        routing_key,
        credit_queue,
        check_queue,
        dead_queue,
        queue_type,
        delivery_limit,
        declare,
        prefetch,
    })
}

fn retry_policy(reader: &mut Reader) -> RetryPolicy {
    RetryPolicy::new(delays(reader, "retry.delays", &["1s", "5s", "30s", "2m", "10m"]))
}

/// Refuses two queues with one name, and names that make the names of delay queues too long for AMQP.
fn distinct_queues(
    reader: &mut Reader,
    [credit_queue, check_queue, dead_queue]: [&str; 3],
    retry: &RetryPolicy,
    checks: &CheckPolicy,
) {
    if credit_queue == dead_queue {
        reader.fault(
            "broker.dead_queue",
            "is the credit queue; must be another queue, otherwise parked messages are consumed again",
        );
    }
    if check_queue == dead_queue || check_queue == credit_queue {
        let of = if check_queue == dead_queue { "dead" } else { "credit" };
        reader.fault("broker.check_queue", format!("is the {of} queue; must be another queue"));
    }
    let of_credit = retry.delays().iter().map(|delay| retry_queue(credit_queue, delay));
    let of_check = retry.delays().iter().map(|delay| retry_queue(check_queue, delay));
    let of_check = of_check.chain(checks.delays().iter().map(|delay| check_delay_queue(check_queue, delay)));
    let owned = of_credit.map(|name| ("broker.credit_queue", name));
    let owned: Vec<_> = owned.chain(of_check.map(|name| ("broker.check_queue", name))).collect();
    for (key, names) in
        [("broker.credit_queue", credit_queue), ("broker.check_queue", check_queue), ("broker.dead_queue", dead_queue)]
    {
        if owned.iter().any(|(_, name)| name == names) {
            reader.fault(key, "is a delay queue of retry.delays or [compensation]; must be another queue");
        }
    }
    for owner in ["broker.credit_queue", "broker.check_queue"] {
        if let Some((_, name)) = owned.iter().find(|(key, name)| *key == owner && name.len() > 255) {
            reader.fault(
                owner,
                format!("makes the name of its delay queue {name} too long; a name has at most 255 bytes"),
            );
        }
    }
}

const DEFAULT_BROKER_URL: &str = "amqp://guest:guest@127.0.0.1:5672/%2f";

/// Reads the URLs, and the path of the file that contains them.
fn broker_urls(reader: &mut Reader) -> (Vec<BrokerUrl>, Option<PathBuf>) {
    let one = reader.secret("broker.url", |url: &String| masked(url));
    let many = reader.secret("broker.urls", |urls: &Vec<String>| urls.iter().map(|url| masked(url)).collect());
    let (key, urls) = match (one, many) {
        (Some(_), Some((key, _))) => {
            reader.fault(&key, "given together with broker.url; only one of them is allowed");
            return (Vec::new(), None);
        }
        (Some((key, url)), None) => (key, vec![url]),
        (None, Some((key, urls))) => (key, urls),
        (None, None) => {
            if !reader.is_given("broker.url") && !reader.is_given("broker.url_file") {
                reader.show("broker.url", masked(DEFAULT_BROKER_URL).show());
            }
            ("broker.url".to_owned(), vec![DEFAULT_BROKER_URL.to_owned()])
        }
    };
    if urls.is_empty() {
        reader.fault(&key, "is an empty list; must have at least one amqp:// or amqps:// URL");
    }
    let mut parsed = Vec::with_capacity(urls.len());
    for (index, url) in urls.iter().enumerate() {
        match BrokerUrl::parse(url) {
            Ok(url) => parsed.push(url),
            Err(error) if urls.len() == 1 => reader.fault(&key, error),
            Err(error) => reader.fault(&key, format!("URL {} of {}: {error}", index + 1, urls.len())),
        }
    }
    if parsed.iter().any(BrokerUrl::is_tls) && !parsed.iter().all(BrokerUrl::is_tls) {
        reader.fault(
            &key,
            "mixes amqp:// and amqps://; all must have the same scheme, otherwise a failover would drop encryption",
        );
    }
    (parsed, reader.file_of(&key))
}

fn tls(reader: &mut Reader, used: bool) -> TlsFiles {
    let mut pem = |key: &str| -> Option<Vec<u8>> {
        let pem = pem(reader, key);
        if !used && reader.is_given(key) {
            reader.fault(key, "is used only with amqps:// URLs; remove it or correct the URL");
        }
        pem
    };
    let (ca, certificate, key) = (pem("broker.ca_file"), pem("broker.cert_file"), pem("broker.key_file"));
    if reader.is_given("broker.cert_file") != reader.is_given("broker.key_file") {
        let given = if reader.is_given("broker.cert_file") { "broker.cert_file" } else { "broker.key_file" };
        reader.fault(given, "given alone; broker.cert_file and broker.key_file must be given together");
    }
    let files = ["broker.ca_file", "broker.cert_file", "broker.key_file"].map(|key| reader.optional(key));
    TlsFiles {
        files,
        ca: ca.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
        identity: certificate.zip(key).map(|(certificate, key)| Identity { certificate, key }),
    }
}

fn message(reader: &mut Reader) -> Format {
    let keys = [
        (Field::PaymentId, "message.payment_id"),
        (Field::UserId, "message.user_id"),
        (Field::Points, "message.points"),
    ];
    let pointers = keys.map(|(_, key)| reader.optional::<String>(key));
    let paths = FieldPaths::new([pointers[0].as_deref(), pointers[1].as_deref(), pointers[2].as_deref()]);
    let paths = paths.unwrap_or_else(|(field, error)| {
        let wrong = keys.iter().find(|(of, _)| *of == field).map_or("message", |(_, key)| key);
        let given = pointers.iter().zip(keys).find(|(_, (of, _))| *of == field).and_then(|(given, _)| given.as_deref());
        reader.fault(wrong, format!("given {:?}; {error}", given.unwrap_or("the default")));
        FieldPaths::default()
    });
    Format {
        paths,
        max_body_bytes: number(reader, "message.max_body_bytes", 65_536, 64..=134_217_728),
        max_points: number(reader, "message.max_points", 1_000_000_000, 1..=MAX_POINTS_LIMIT),
        // The rule of the payment source is set after its section is read.
        payment_ids: IdRule::Any,
    }
}

const DEFAULT_LEDGER_URL: &str = "sqlite:pointsd.db";

fn ledger(reader: &mut Reader, state_directory: Option<&Path>) -> Option<LedgerSettings> {
    let (key, url) = reader.secret("ledger.url", |url: &String| masked(url)).unwrap_or_else(|| {
        if !reader.is_given("ledger.url") && !reader.is_given("ledger.url_file") {
            reader.show("ledger.url", DEFAULT_LEDGER_URL.to_owned().show());
        }
        ("ledger.url".to_owned(), DEFAULT_LEDGER_URL.to_owned())
    });
    let url = match DatabaseUrl::parse(&url, state_directory) {
        Ok(url) => Some(url.from_file(reader.file_of(&key))),
        Err(error) => {
            reader.fault(&key, error);
            None
        }
    };
    let auto_migrate = url.as_ref().is_some_and(DatabaseUrl::auto_migrate_default);
    let pool_size = number(reader, "ledger.pool_size", 2, 1..=64);
    let batch_max = number(reader, "ledger.batch_max", 500, 1..=i64::try_from(MAX_BATCH).unwrap_or(i64::MAX));
    let timeout = duration(reader, "ledger.timeout", 10);
    let auto_migrate = reader.setting("ledger.auto_migrate", auto_migrate);
    Some(LedgerSettings { url: url?, pool_size, batch_max, timeout, auto_migrate })
}
