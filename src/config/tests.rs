use super::*;
use crate::{broker::SourceKind, config::masking::masked, database::DatabaseUrl};

fn settings(text: &str) -> Result<Settings, Vec<Fault>> {
    Settings::read(Some(("pointsd.toml", text)), [], None)
}

fn read_with(text: &str, environment: &[(&str, &str)]) -> Result<Settings, Vec<Fault>> {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Settings::read(Some(("pointsd.toml", text)), environment, None)
}

fn faults(result: Result<Settings, Vec<Fault>>) -> Vec<String> {
    result.expect_err("it has faults").iter().map(ToString::to_string).collect()
}

const EXAMPLE: &str = include_str!("../../pointsd.example.toml");

#[test]
fn the_example_is_equal_to_the_defaults() {
    let example = settings(EXAMPLE).unwrap();
    let defaults = Settings::read(None, [], None).unwrap();
    assert_eq!(example.effective_toml(), defaults.effective_toml());
}

#[test]
fn the_example_has_every_key() {
    // With every optional key uncommented it still has no unknown key, so each is one that is read …
    let uncommented: String = EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some("[[source]]") => "[[source]]\n".to_owned(),
            Some(key) if key.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ')) => format!("{key}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let reported = faults(settings(&uncommented));
    assert!(reported.iter().all(|fault| !fault.contains("unknown key")), "{reported:?}");
    // … and it is complete: it contains every key that is read.
    let source = "[[source]]\nname = \"x\"";
    for key in reader::known_keys(source, |reader| {
        sections::all(reader, None);
    }) {
        let name = key.rsplit('.').next().unwrap();
        let there = uncommented.lines().any(|line| line.starts_with(&format!("{name} = ")));
        assert!(there, "{key} is not in pointsd.example.toml");
    }
}

#[test]
fn all_faults_are_told_at_once_with_file_line_key_and_what_would_be_right() {
    let text = r#"
shutdown_timeout = 25
[broker]
url = "http://u:secret@h"
prefech = 5
prefetch = -5
queue_type = "mirrored"
dead_queue = "points.credit"
exchange = "amq.direct"
[ledger]
url = "mysql://u:secret@h/db"
pool_size = "two"
timeout = "fast"
batch_max = 10001
[message]
payment_id = "data.id"
max_points = 0
[log]
level = "loud"
[http]
listen = "localhost"
[brokr]
"#;
    assert_eq!(
        faults(settings(text)),
        [
            "pointsd.toml:2: shutdown_timeout: given 25; must be a duration from 1s to 1h, as in \"25s\"",
            "pointsd.toml:4: broker.url: must begin with amqp:// or amqps://, as in amqp://user:password@host:5672/%2f",
            "pointsd.toml:5: broker.prefech: unknown key; did you mean broker.prefetch?",
            "pointsd.toml:6: broker.prefetch: given -5; must be a whole number from 1 to 2000",
            "pointsd.toml:7: broker.queue_type: given \"mirrored\"; must be \"quorum\" or \"classic\"",
            "pointsd.toml:8: broker.dead_queue: is the credit queue; must be another queue, otherwise parked messages are consumed again",
            "pointsd.toml:9: broker.exchange: given \"amq.direct\"; must be 1 to 255 bytes, not beginning with \"amq.\" (reserved by the broker)",
            "pointsd.toml:11: ledger.url: must be sqlite:FILE, postgres://… or postgresql://…",
            "pointsd.toml:12: ledger.pool_size: given \"two\"; must be a whole number from 1 to 64",
            "pointsd.toml:13: ledger.timeout: given \"fast\"; must be a duration from 1s to 1h, as in \"25s\"",
            "pointsd.toml:14: ledger.batch_max: given 10001; must be a whole number from 1 to 10000",
            "pointsd.toml:16: message.payment_id: given \"data.id\"; must be a JSON Pointer such as \"/data/order/id\" (RFC 6901), at most 8 levels deep",
            "pointsd.toml:17: message.max_points: given 0; must be a whole number from 1 to 1000000000000",
            "pointsd.toml:19: log.level: given \"loud\"; must be \"error\", \"warn\", \"info\", \"debug\" or \"trace\"",
            "pointsd.toml:21: http.listen: given \"localhost\"; must be an address and a port, as in \"127.0.0.1:10187\" or \"[::1]:10187\"",
            "pointsd.toml:22: brokr: unknown key; did you mean broker?",
        ]
    );
}

#[test]
fn combinations_that_are_dangerous_are_refused() {
    for (text, fault) in [
        ("[broker]\nurl = \"amqp://h\"\nurls = [\"amqp://h\"]", "given together with broker.url"),
        ("[broker]\nurls = []", "is an empty list"),
        ("[broker]\nurls = [\"amqp://a\", \"amqps://b\"]", "would drop encryption"),
        ("[broker]\nurls = [\"amqp://a\", \"amqp://b/\"]", "URL 2 of 2: names the virtual host \"\""),
        ("[broker]\nurl = \"amqp://h/\"", "names the virtual host \"\""),
        ("[broker]\nca_file = \"/etc/hostname\"", "is used only with amqps://"),
        ("[broker]\nurl = \"amqps://h\"\nca_file = \"/etc/hostname\"", "/etc/hostname holds no PEM of a certificate"),
        ("[broker]\nurl_file = \"amqp://u:s3cret@h\"", "given a URL; must be the path of a file"),
        ("\"broker.prefetch\" = 3", "unknown key"),
        ("[ledger]\nurl = \"postgres://h:s3cret/d\"", "has a port that is not a number"),
        ("[broker]\nprefetch = 99999999999999999999", "broker.prefetch: "),
        ("[broker]\nexchange = 1979-05-27", "broker.exchange: given a date"),
        ("[broker]\nurl = \"amqps://h\"\ncert_file = \"/nonexistent\"", "must be given together"),
        ("[broker]\nurl_file = \"/nonexistent\"", "/nonexistent cannot be read: No such file"),
        ("[broker]\nurl_file = \"/etc/hostname\"\nurl = \"amqp://h\"", "given together with broker.url"),
        ("[broker]\nqueue_type = \"quorum\"\nprefetch = 3000", "must be a whole number from 1 to 2000"),
        ("[ledger]\nurl = \"sqlite::memory:\"", "would lose every credit"),
        ("[message]\nuser_id = \"/a\"\npayment_id = \"/a\"", "points at or into another field"),
        ("broker = 5", "broker: is a section"),
        ("[broker]\nprefetch = 5\nprefetch = 6", "not TOML: duplicate key"),
        ("[broker\n", "not TOML"),
    ] {
        let reported = faults(settings(text));
        assert!(reported.iter().any(|reported| reported.contains(fault)), "{text}: {reported:?}");
        assert!(reported.iter().all(|reported| !reported.contains("s3cret")), "{text}: {reported:?}");
    }
    let classic = settings("[broker]\nqueue_type = \"classic\"\nprefetch = 3000").unwrap();
    assert_eq!(classic.broker.prefetch, 3000);
}

#[test]
fn the_environment_wins_and_is_checked_as_the_file_is() {
    let text = "[broker]\nprefetch = 5\nurl_file = \"/nonexistent\"";
    let environment = [
        ("POINTSD_BROKER__PREFETCH", "7"),
        ("POINTSD_BROKER__URLS", "[\"amqp://a\", \"amqp://b\"]"),
        ("POINTSD_BROKER__DECLARE", "false"),
        ("POINTSD_SHUTDOWN_TIMEOUT", "90s"),
        ("HOME", "/nowhere"),
    ];
    // The environment overrides every way in which the file gives the URLs.
    assert_eq!(read_with(text, &environment).unwrap().broker.urls.len(), 2);
    let settings = read_with("[broker]\nprefetch = 5", &environment).unwrap();
    assert_eq!((settings.broker.prefetch, settings.broker.urls.len(), settings.broker.declare), (7, 2, false));
    assert_eq!(settings.shutdown_timeout, Duration::from_secs(90));
    // The environment overrides a secret and its file.
    let settings = read_with(text, &[("POINTSD_BROKER__URL", "amqp://u:p@h")]).unwrap();
    assert_eq!(settings.broker.urls[0].to_string(), "h:5672 (vhost /)");

    let reported = faults(read_with(
        "",
        &[("POINTSD_BROKER__PREFETCH", "many"), ("POINTSD_LEGDER__URL", "x"), ("POINTSD_broker__url", "x")],
    ));
    assert_eq!(
        reported,
        [
            "environment variable POINTSD_BROKER__PREFETCH: broker.prefetch: given \"many\"; must be a whole number from 1 to 2000",
            "environment variable POINTSD_LEGDER__URL: legder.url: unknown key; did you mean ledger.url?",
            "environment variable POINTSD_broker__url: must be written in capitals",
        ]
    );
}

#[test]
fn variables_that_only_begin_as_ours_are_named_and_change_nothing() {
    let foreign = [
        ("POINTSD_SERVICE_HOST", "10.0.0.1"),
        ("POINTSD_PORT", "tcp://10.0.0.1:80"),
        ("POINTSD_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("POINTSD_LEDGER_SERVICE_PORT", "80"),
        ("POINTSD_SHUTDOWN_TIMEOUT_FILE", "/nonexistent"),
        ("POINTSD_env", "x"),
    ];
    let ours = [("POINTSD_SHUTDOWN_TIMEOUT", "90s"), ("POINTSD_LEDGER__POOL_SIZE", "3")];
    let settings = read_with("", &[&foreign[..], &ours].concat()).unwrap();
    let names = |variables: &[(&str, &str)]| {
        let mut names: Vec<String> = variables.iter().map(|(name, _)| (*name).to_owned()).collect();
        names.sort();
        names
    };
    let expected =
        ReadFrom { file: Some("pointsd.toml".into()), environment: names(&ours), ignored_environment: names(&foreign) };
    assert_eq!(settings.read_from, expected);
    assert_eq!((settings.shutdown_timeout, settings.ledger.pool_size), (Duration::from_secs(90), 3));
    // An ignored variable overrides nothing.
    let settings = read_with("shutdown_timeout = \"90s\"", &foreign).unwrap();
    assert_eq!(settings.shutdown_timeout, Duration::from_secs(90));

    let reported = faults(read_with(
        "",
        &[("POINTSD_LEDGER__URRL", "x"), ("POINTSD_LEDGER", "x"), ("POINTSD_SHUTDOWN_TIMEOUT", "x"), foreign[0]],
    ));
    assert_eq!(
        reported,
        [
            "environment variable POINTSD_LEDGER: ledger: is a section; must be written as [ledger] with its keys below",
            "environment variable POINTSD_LEDGER__URRL: ledger.urrl: unknown key; did you mean ledger.url?",
            "environment variable POINTSD_SHUTDOWN_TIMEOUT: shutdown_timeout: given \"x\"; must be a duration from 1s to 1h, as in \"25s\"",
        ]
    );
}

#[test]
fn a_delay_that_a_list_has_twice_is_reported_as_that() {
    let source = "[[source]]\nname = \"s\"\nexchange = \"e\"\nrouting_key = \"k\"\nqueue = \"q\"\nformat = \"credit\"";
    let twice = "[retry]\ndelays = [\"5s\", \"1m\", \"5s\"]";
    let reported = faults(settings(&format!("{twice}\n{source}")));
    assert_eq!(reported, ["pointsd.toml:2: retry.delays: has 5s twice; with [[source]] each delay must be given once"]);
    assert!(settings(twice).is_ok(), "the queue of one delay serves two steps");
    // In seconds and in minutes it is two queues.
    assert!(settings(&format!("[retry]\ndelays = [\"60s\", \"1m\"]\n{source}")).is_ok());
    assert!(settings("[compensation]\nfirst = \"5s\"\ndelays = [\"5s\"]").is_ok());
}

#[test]
fn secrets_are_masked_wherever_settings_are_shown() {
    for url in [
        "amqp://user:s3cret@h:5672/%2f",
        "amqp://user:s3cret@h",
        "postgres://user:s3cret@a,b/db?sslmode=require",
        "postgres://user@h/db?password=s3cret&x=1",
        "postgres://user:s3/cr@et:s3cret@h/db",
        "postgres://:s3cret@h/db?sslpassword=s3cret",
        "postgres://u@h/db?pass%77ord=s3cret",
        "postgres://u@h/db#s3cret",
    ] {
        let shown = masked(url);
        assert!(
            !shown.contains("s3") && shown.contains("***") && shown.contains('h') | shown.contains("a,b"),
            "{shown}"
        );
    }
    assert_eq!(masked("sqlite:pointsd.db"), "sqlite:pointsd.db");

    let text = "[broker]\nurl = \"amqp://u:s3cret@h\"\n[ledger]\nurl = \"postgres://u:s3cret@h/db\"";
    let read = settings(text).unwrap();
    let shown = format!("{read:?}{}", read.effective_toml());
    assert!(!shown.contains("s3cret") && shown.contains("amqp://u:***@h"), "{shown}");
    // Nor in an error.
    let reported = faults(settings("[broker]\nurl = [\"amqp://u:s3cret@h\"]\n[ledger]\nurl = \"oracle://u:s3cret@h\""));
    assert!(reported.iter().all(|reported| !reported.contains("s3cret")), "{reported:?}");
}

#[test]
fn defaults_that_depend_on_the_ledger() {
    let postgres = settings("[ledger]\nurl = \"postgres://h/db\"").unwrap();
    assert!(!postgres.ledger.auto_migrate);
    assert!(settings("").unwrap().ledger.auto_migrate);
    let state = Settings::read(None, [], Some(Path::new("/var/lib/pointsd"))).unwrap();
    assert_eq!(state.ledger.url.describe(), "SQLite /var/lib/pointsd/pointsd.db");
}

const SQL: &str = r#"
[pay_status]
source = "sql"
[pay_status.sql]
table = "shop.payments"
id_column = "id"
status_column = "status"
paid = [1, "PAID"]
pending = [0]
closed = [2]
"#;

const HTTP: &str = r#"
[pay_status]
source = "http"
[pay_status.http]
url = "https://u:s3cret@pay.example/payments/{payment_id}?key=s3cret"
status_pointer = "/status"
paid = ["PAID"]
headers = ["Authorization: Bearer s3cret", "X-Shop: s3cret"]
"#;

#[test]
fn a_payment_source_is_read_whole() {
    let PayStatusSettings::Sql(sql) = settings(SQL).unwrap().pay_status else { panic!("sql") };
    assert_eq!((sql.table.to_string().as_str(), sql.user_column), ("\"shop\".\"payments\"", None));
    assert_eq!(
        (sql.values.paid, sql.values.pending, sql.values.closed),
        (vec!["1".into(), "PAID".into()], vec!["0".into()], vec!["2".into()])
    );
    assert!(matches!(sql.url, DatabaseUrl::Sqlite(_)), "the ledger's own");
    let PayStatusSettings::Http(http) = settings(HTTP).unwrap().pay_status else { panic!("http") };
    assert_eq!((http.timeout, http.concurrency, http.headers.len()), (Duration::from_secs(5), 16, 2));
    assert!(!settings("").unwrap().pay_status.is_some());
    let words = [("POINTSD_PAY_STATUS__SQL__PAID", "[1, 3]")];
    let PayStatusSettings::Sql(sql) = read_with(SQL, &words).unwrap().pay_status else { panic!("sql") };
    assert_eq!(sql.values.paid, ["1", "3"]);
}

#[test]
fn a_payment_sources_secrets_are_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("headers");
    std::fs::write(&file, "Authorization: Bearer s3cret\nX-Shop: s3cret\n").unwrap();
    let from_file = HTTP.replace(
        "headers = [\"Authorization: Bearer s3cret\", \"X-Shop: s3cret\"]",
        &format!("headers_file = {file:?}"),
    );
    for text in [HTTP, &from_file] {
        let settings = settings(text).unwrap();
        let shown = settings.effective_toml() + &format!("{settings:?}");
        assert!(!shown.contains("s3cret"), "{shown}");
        assert!(shown.contains("https://***@pay.example/***") && shown.contains("authorization"), "{shown}");
    }
    let wrong = HTTP.replace("Authorization: Bearer s3cret", "Bearer s3cret").replace("{payment_id}", "s3cret");
    let reported = faults(settings(&wrong));
    assert_eq!(reported.len(), 2, "{reported:?}");
    assert!(reported.iter().all(|fault| !fault.contains("s3cret")), "{reported:?}");
}

#[test]
fn payment_ids_are_limited_to_what_the_payment_source_can_be_asked_for() {
    let accepted = |text: &str, id: &str| settings(text).unwrap().message.payment_ids.check(id).is_ok();
    let pattern = HTTP.to_owned() + "id_pattern = \"[a-z]+/[0-9]+\"\n";
    for (text, id, is_accepted) in [
        ("", "a/1", true),
        (SQL, "a/1", true),
        (HTTP, "a/1", false),
        (HTTP, "a-1", true),
        (&pattern, "a/1", true),
        (&pattern, "a-1", false),
        (&pattern, "..", false),
    ] {
        assert_eq!(accepted(text, id), is_accepted, "{id}: {text}");
    }
    assert!(settings(&pattern).unwrap().effective_toml().contains("id_pattern = \"[a-z]+/[0-9]+\""));
}

#[test]
fn a_payment_source_that_is_not_whole_or_not_used_is_told() {
    let lines = |text: &str| faults(settings(text));
    assert_eq!(
        lines("[pay_status]\nsource = \"sql+http\"\n"),
        [
            "configuration: pay_status.http.paid: must have at least one value, as in [\"TRADE_SUCCESS\"]",
            "configuration: pay_status.http.status_pointer: is missing; must be given for this pay_status.source, as in \"/status\"",
            "configuration: pay_status.http.url: is missing; must be given for this pay_status.source, as in \"https://pay.example/payments/{payment_id}\"",
            "configuration: pay_status.sql.id_column: is missing; must be given for this pay_status.source, as in \"id\"",
            "configuration: pay_status.sql.paid: must have at least one value, as in [\"TRADE_SUCCESS\"]",
            "configuration: pay_status.sql.status_column: is missing; must be given for this pay_status.source, as in \"status\"",
            "configuration: pay_status.sql.table: is missing; must be given for this pay_status.source, as in \"payments\"",
        ]
    );
    let reported = lines(&SQL.replace("source = \"sql\"", "source = \"none\""));
    assert!(
        reported.len() == 6 && reported.iter().all(|fault| fault.contains("is used only with pay_status.source")),
        "{reported:?}"
    );
    let reported = lines(&SQL.replace("closed = [2]", "closed = [2, 1]"));
    assert_eq!(reported.len(), 1);
    assert!(reported[0].contains("\"1\" is given twice"), "{reported:?}");
    for (wrong, fault) in [
        ("[compensation]\nfirst = \"0s\"\n", "compensation.first"),
        ("[compensation]\ndelays = [\"1 minute\"]\n", "compensation.delays"),
        ("[compensation]\non_unpaid = \"ignore\"\n", "compensation.on_unpaid"),
        ("[compensation]\nbrake_after = 0\n", "compensation.brake_after"),
        (&HTTP.replace("\"/status\"", "\"/a~9\""), "pay_status.http.status_pointer"),
        (
            &(HTTP.to_owned() + "id_pattern = \"[0-9\"\n"),
            "pay_status.http.id_pattern: given \"[0-9\"; is not a regular expression: unclosed character class",
        ),
        (&(HTTP.to_owned() + "id_pattern = \"\"\n"), "pay_status.http.id_pattern: given \"\"; is empty"),
        (&(SQL.to_owned() + "[pay_status.http]\nid_pattern = \"x\"\n"), "pay_status.http.id_pattern: is used only"),
        (&SQL.replace("paid = [1, \"PAID\"]", "paid = [1.5]"), "pay_status.sql.paid: given"),
        ("[broker]\ncheck_queue = \"points.credit\"\n", "broker.check_queue: is the credit queue"),
        ("[broker]\ncheck_queue = \"points.credit.retry.1s\"\n", "broker.check_queue: is a delay queue"),
        ("[broker]\ndead_queue = \"points.check.delay.30s\"\n", "broker.dead_queue: is a delay queue"),
    ] {
        let reported = lines(wrong);
        assert!(reported.len() == 1 && reported[0].contains(fault), "{wrong}: {reported:?}");
    }
}

/// A `[pay_status.sql]` that can look up notifications.
const SHOP: &str = "[pay_status]\nsource = \"sql\"\n[pay_status.sql]\ntable = \"t\"\nid_column = \"id\"\nstatus_column = \"s\"\n\
                    user_column = \"u\"\npoints_column = \"p\"\npaid = [1]\npending = [0]\nclosed = [2]\n";

fn with_source(shop: &str, source: &str) -> String {
    format!(
        "{shop}[[source]]\nname = \"shop\"\nexchange = \"pay\"\nrouting_key = \"k\"\nqueue = \"q\"\nformat = \"payment_id\"\n{source}\n"
    )
}

#[test]
fn sources_are_read_from_the_file_and_from_the_environment() {
    let text = with_source(SHOP, "expire = true\nfirst = \"15m\"\ndelays = []");
    let read = read_with(
        &text,
        &[
            ("POINTSD_SOURCE__0__QUEUE", "other"),
            ("POINTSD_BROKER__DECLARE", "false"),
            ("POINTSD_EVENTS__ENABLED", "true"),
        ],
    )
    .unwrap();
    let source = &read.sources[0];
    assert_eq!((source.name.as_str(), source.queue.as_str(), source.declare), ("shop", "other", false));
    assert_eq!(read.events.exchange.as_deref(), Some("points.events"));
    let delays: Vec<String> = read.check_delays().iter().map(|delay| delay.as_str().to_owned()).collect();
    assert_eq!(delays, ["30s", "1m", "5m", "30m", "2h", "12h", "15m"]);
    let SourceKind::Notification(notification) = &source.kind else { panic!("a notification") };
    assert_eq!(notification.policy.beginning().index(), 6, "its own delays follow the others");
    let shown = read.effective_toml();
    assert!(shown.contains("[[source]]") && shown.contains("first = \"15m\""), "{shown}");
    assert_eq!(
        settings(&shown.replace("***", "guest")).unwrap().effective_toml(),
        shown,
        "what is shown can be read again"
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn what_is_wrong_with_a_source_is_told() {
    let both = "points_column = \"p\"\namount_column = \"a\"\n";
    for (text, fault) in [
        (with_source("", ""), "source.0.format: needs a payment table: pay_status.source must be"),
        (
            with_source(&SHOP.replace("points_column = \"p\"\n", ""), ""),
            "source.0.format: needs the user and the points of a payment",
        ),
        (with_source(SHOP, "mark_paid = true\nexpire = true"), "source.0.expire: given together with mark_paid"),
        (
            with_source(&SHOP.replace("pending = [0]", ""), "mark_paid = true"),
            "pay_status.sql.pending: must have at least one",
        ),
        (
            with_source(&SHOP.replace("closed = [2]", ""), "expire = true"),
            "pay_status.sql.closed: must have at least one",
        ),
        (with_source(SHOP, "first = \"1s\""), "source.0.first: is used only with expire = true"),
        (
            with_source(SHOP, "message_types = [\"x\"]"),
            "source.0.message_types: is used only with format = \"pay_notify\"",
        ),
        (
            with_source(SHOP, "").replace("\"payment_id\"", "\"pay_notify\""),
            "source.0.business_types: must have at least one value, as in [\"60201\"]",
        ),
        (
            with_source(SHOP, "mark_paid = false").replace("\"payment_id\"", "\"credit\""),
            "source.0.mark_paid: is used only with format = \"payment_id\" or \"pay_notify\"",
        ),
        (
            with_source(SHOP, "").replace("\"shop\"", "\"credit\""),
            "source.0.name: given \"credit\", which is reserved in metrics and logs",
        ),
        (with_source(SHOP, "").replace("\"shop\"", "\"a b\""), "source.0.name: must be 1 to 64 letters"),
        (
            with_source(SHOP, "").replace("\"q\"", "\"points.credit\""),
            "source.0.queue: needs the queue \"points.credit\", which has another use",
        ),
        (
            with_source(SHOP, "").replace("\"pay\"", "\"points\"") + "exchange_type = \"topic\"",
            "source.0.exchange_type: given \"topic\"; exchange points is",
        ),
        (with_source(SHOP, "[[source]]\nname = \"shop\""), "source.1.queue: is missing"),
        (with_source(SHOP, "typo = 1"), "source.0.typo: unknown key"),
        (
            SHOP.to_owned() + "[source]\nname = \"x\"",
            "source.name: unknown key; sections of this name are written [[source]]",
        ),
        (
            SHOP.replace("points_column = \"p\"\n", both),
            "pay_status.sql.amount_column: given together with points_column",
        ),
        (
            SHOP.replace("points_column = \"p\"", "amount_column = \"a\""),
            "pay_status.sql.points_per_unit: is missing; must be given with amount_column",
        ),
        (
            SHOP.replace("points_column = \"p\"", "amount_column = \"a\"\npoints_per_unit = 0.01"),
            "pay_status.sql.points_per_unit: given 0.01; must be a decimal as a string",
        ),
        (
            SHOP.replace("points_column = \"p\"", "amount_column = \"a\"\npoints_per_unit = \"-1\""),
            "pay_status.sql.points_per_unit: given \"-1\"; is negative",
        ),
        (
            SHOP.replace("points_column = \"p\"", "amount_column = \"a\"\npoints_per_unit = \"1\"\nmin = 5\nmax = 4"),
            "pay_status.sql.min: given 5; must be at most max",
        ),
        (SHOP.to_owned() + "min = 5", "pay_status.sql.min: is used only with amount_column"),
        (
            SHOP.replace("user_column = \"u\"\n", ""),
            "pay_status.sql.user_column: is missing; must be given with points_column or amount_column",
        ),
        ("[events]\nenabled = true\nexchange = \"points\"".to_owned(), "events.exchange: is broker.exchange"),
        ("[[sources]]".to_owned(), "pointsd.toml:1: [[sources]]: unknown section"),
        (
            with_source(SHOP, "").replace("\"q\"", "\"points.dead.retry.1s\"")
                + "[broker]\ndead_queue = \"x\"\ncredit_queue = \"points.dead\"",
            "source.0.queue: needs the queue \"points.dead.retry.1s\"",
        ),
        (with_source(SHOP, "[[source]]\nname = \"b\""), "pointsd.toml:18: source.1.queue: is missing"),
    ] {
        let reported = faults(settings(&text));
        assert!(reported.iter().any(|reported| reported.contains(fault)), "{fault}: {reported:#?}");
    }
    let gap = faults(read_with(&with_source(SHOP, ""), &[("POINTSD_SOURCE__2__NAME", "x")]));
    assert!(
        gap.iter().any(|reported| reported.contains("source.1: is missing, but one with a higher number is given")),
        "{gap:#?}"
    );
    let secret = faults(settings(&with_source(
        &SHOP.replace("points_column = \"p\"", "amount_column = \"p\"\npoints_per_unit = \"amqp://u:s3cret@h\""),
        "",
    )));
    assert!(secret.iter().all(|reported| !reported.contains("s3cret")), "{secret:#?}");
}
