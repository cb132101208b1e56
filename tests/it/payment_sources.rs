//! Payment sources: what they answer, and what is an outage.

use crate::{
    compensation::{assert_right, checks, is, publish, setup, start, state, wait_for_checks, wait_for_state},
    support::{
        amqp::{Client, text},
        daemon::{Daemon, Setup},
        eventually, free_port,
        gateway::{Gateway, Reply},
        ledger::{Kind, Place},
        payments::Payments,
        rabbit, tls,
    },
};
use axum::body::Bytes;
use lapin::BasicProperties;
use pointsd::{
    domain::{
        failure::BatchError,
        ids::PaymentId,
        status::{PaymentStatus, StatusValues},
    },
    pay_status::{
        Identifier, Limits, TableName,
        settings::{PayStatusSettings, SqlSourceSettings},
        source,
    },
    pipeline::ports::{Lookup, PaymentSource, look_up_all},
};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

fn wait_paused(daemon: &Daemon, reason: &str) {
    daemon.wait_for(&format!("the checks pause: {reason}"), |daemon| {
        let (status, body) = daemon.get("/readyz")?;
        (status == 200 && body.contains("checks paused") && body.contains(reason)).then_some(())
    });
    assert_eq!(daemon.metric(r#"pointsd_paused{dependency="pay_status"}"#), 1.0);
}

fn wait_resumed(daemon: &Daemon) {
    daemon.wait_for("the checks go on", |daemon| {
        daemon.metric(r#"pointsd_paused{dependency="pay_status"}"#).eq(&0.0).then_some(())
    });
}

/// Publishes payments and waits until they are credited: nothing that happens to the source holds that up.
fn credit(client: &Client, setup: &Setup, daemon: &Daemon, payments: std::ops::Range<u64>, balance: u64) {
    publish(client, setup, payments);
    daemon.wait_for("credits go on", |_| setup.json(&["balance", "u", "--json"])["balance"].eq(&balance).then_some(()));
}

fn outcome(daemon: &Daemon, outcome: &str) -> f64 {
    daemon.metric(&format!(r#"pointsd_messages_total{{queue="check",outcome="{outcome}"}}"#))
}

#[test]
fn a_gateway_that_is_down_slow_or_out_of_its_mind_costs_no_check_and_no_credit() {
    let place = Place::new(Kind::Postgres);
    let port = free_port();
    let nobody = format!(
        "[pay_status.http]\nurl = \"http://127.0.0.1:{port}/payments/{{payment_id}}\"\nstatus_pointer = \"/data/status\"\n\
         paid = [\"TRADE_SUCCESS\"]\npending = [\"WAIT_BUYER_PAY\"]\nclosed = [\"TRADE_CLOSED\"]\ntimeout = \"1s\"\n\
         headers = [\"Authorization: Bearer s3cret\"]\n"
    );
    let setup = setup(&place, "http", &nobody, "300ms", r#"["1h"]"#);
    let daemon = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    let mut balance = 0;
    let mut next = 1;
    let mut more = |count: u64| {
        let payments = next..next + count;
        next += count;
        balance += 10 * count;
        credit(&client, &setup, &daemon, payments, balance);
    };

    // Nobody listens.
    more(20);
    wait_paused(&daemon, "pay_status");
    let gateway = Gateway::start_on(port, None, |_, _| Reply::trade("TRADE_SUCCESS"));
    wait_resumed(&daemon);
    wait_for_checks(&daemon, "paid", "verify", 20.0);

    // It takes its time, and then for ever.
    gateway.behave(|_, _| Reply { delay: Duration::from_millis(300), ..Reply::trade("TRADE_SUCCESS") });
    more(20);
    wait_for_checks(&daemon, "paid", "verify", 40.0);
    let mut verified = 40.0;
    let outages: [(&str, fn() -> Reply); 6] = [
        ("no answer within 1s", || Reply { delay: Duration::from_secs(30), ..Reply::trade("TRADE_SUCCESS") }),
        ("500 Internal Server Error", || Reply::status(500)),
        ("429 Too Many Requests", || Reply::status(429)),
        ("401 Unauthorized", || Reply::status(401)),
        ("403 Forbidden", || Reply::status(403)),
        ("302 Found; redirects are not followed", || Reply {
            location: Some("http://127.0.0.1:1/".into()),
            ..Reply::status(302)
        }),
    ];
    for (reason, reply) in outages {
        gateway.behave(move |_, _| reply());
        more(10);
        wait_paused(&daemon, reason);
        more(5);
        assert_eq!(checks(&daemon, "paid", "verify"), verified);
        gateway.behave(|_, headers| {
            assert_eq!(headers["authorization"], "Bearer s3cret");
            Reply::trade("TRADE_SUCCESS")
        });
        wait_resumed(&daemon);
        verified += 15.0;
        wait_for_checks(&daemon, "paid", "verify", verified);
    }
    for (outcome, count) in [("retry", 0.0), ("exhausted", 0.0), ("checked", verified)] {
        assert_eq!(self::outcome(&daemon, outcome), count, "{outcome}");
    }
    assert!(!daemon.log().contains("s3cret"), "{}", daemon.log());
    assert_eq!(client.ready(&setup.dead_queue), Some(0));
    assert_right(&setup);
    daemon.stop();
}

#[test]
fn an_answer_that_cannot_be_used_is_tried_again_and_parked_and_stops_nobody_else() {
    let place = Place::new(Kind::Sqlite);
    let huge = Bytes::from(vec![b' '; 50 * 1024 * 1024]);
    let mut table: BTreeMap<String, Reply> =
        (1..=40).map(|id| (id.to_string(), Reply::trade("TRADE_SUCCESS"))).collect();
    let bad = [
        ("3", Reply::status(500), "answered 500"),
        ("4", Reply::body("<html>maintenance</html>"), "is not JSON"),
        ("5", Reply::body(huge), "at most 262144 bytes"),
        ("6", Reply::body(r#"{"data": {}}"#), "no status at"),
        ("7", Reply::body(r#"{"data": {"status": ["TRADE_SUCCESS"]}}"#), "no status at"),
        ("8", Reply::status(400), "answered 400"),
        ("9", Reply { delay: Duration::from_secs(20), ..Reply::trade("TRADE_SUCCESS") }, "no answer within 1s"),
    ];
    for (id, reply, _) in &bad {
        table.insert((*id).to_owned(), reply.clone());
    }
    table.remove("10");
    let gateway = Gateway::start(|_, _| Reply::status(404));
    gateway.table(table);
    let setup = setup(&place, "http", &gateway.settings(), "300ms", "[]");
    let daemon = setup.start_with(|command| {
        command.env("POINTSD_RETRY__DELAYS", r#"["1s"]"#);
    });
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    publish(&client, &setup, 1..=40);
    wait_for_checks(&daemon, "paid", "verify", 32.0);
    // 404 is unknown.
    wait_for_state(&setup, &daemon, 10, &is("reversed", false));
    eventually("the bad ones are parked", || client.ready(&setup.dead_queue)?.eq(&7).then_some(()));
    daemon.wait_for("they are counted", |daemon| outcome(daemon, "exhausted").eq(&7.0).then_some(()));
    assert_eq!(outcome(&daemon, "retry"), 7.0);
    assert_eq!(daemon.metric(r#"pointsd_paused{dependency="pay_status"}"#), 0.0);
    let memory = daemon.metric("process_resident_memory_bytes");
    assert!(memory < 150e6, "{memory} bytes");
    for parked in client.drain(&setup.dead_queue) {
        let body = String::from_utf8(parked.delivery.data.clone()).unwrap();
        let (id, _, error) = bad.iter().find(|(id, ..)| body.contains(&format!("\"paymentId\":\"{id}\""))).unwrap();
        assert_eq!(text(&parked, "x-pointsd-reason"), Some("exhausted".into()));
        assert_eq!(text(&parked, "x-pointsd-source-queue"), Some(setup.check_queue.clone()));
        let told = text(&parked, "x-pointsd-error").unwrap();
        assert!(told.contains(error), "{id}: {told}");
        assert_eq!(state(&setup, id.parse().unwrap()), is("credited", false));
    }
    assert_right(&setup);
    daemon.stop();
}

#[test]
fn one_id_that_always_fails_is_no_outage_also_when_it_is_alone() {
    let place = Place::new(Kind::Sqlite);
    let gateway = Gateway::start(|id, _| if id == "1" { Reply::status(500) } else { Reply::status(404) });
    let setup = setup(&place, "http", &gateway.settings(), "100ms", r#"["1h"]"#);
    let daemon = setup.start_with(|command| {
        command.env("POINTSD_RETRY__DELAYS", "[]");
    });
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    publish(&client, &setup, [1]);
    eventually("it is parked", || client.ready(&setup.dead_queue)?.eq(&1).then_some(()));
    assert!(!daemon.log().contains("paused"), "{}", daemon.log());
    // Each look-up is tried three times, and a probe asks for somebody else's each time.
    assert!(gateway.asked() < 20, "{} requests", gateway.asked());
    daemon.stop();
}

#[test]
fn a_payment_table_that_is_missing_or_locked_is_an_outage_of_the_checks_alone() {
    let (place, payments) = (Place::new(Kind::Postgres), Payments::new());
    let setup = setup(&place, "sql", &payments.settings(), "100ms", r#"["1h"]"#);
    payments.execute("ALTER TABLE shop.payments RENAME TO hidden");
    let daemon = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    credit(&client, &setup, &daemon, 1..11, 100);
    wait_paused(&daemon, "does not exist");
    payments.execute("ALTER TABLE shop.hidden RENAME TO payments");
    let rows: Vec<(u64, &str)> = (1..=20).map(|id| (id, "TRADE_SUCCESS")).collect();
    payments.set_all(&rows);
    wait_resumed(&daemon);
    let lock = payments.hold();
    credit(&client, &setup, &daemon, 11..21, 200);
    wait_paused(&daemon, "lock timeout");
    drop(lock);
    wait_resumed(&daemon);
    wait_for_checks(&daemon, "paid", "verify", 20.0);
    assert_eq!((outcome(&daemon, "retry"), outcome(&daemon, "checked")), (0.0, 20.0));
    daemon.stop();
}

#[test]
fn malformed_checks_are_acknowledged_because_their_own_queue_has_parked_them() {
    let (place, payments) = (Place::new(Kind::Sqlite), Payments::new());
    let setup = setup(&place, "sql", &payments.settings(), "100ms", "[]");
    let daemon = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    // Nothing is scheduled for it; another program has bound the check queue.
    client.bind(&setup.check_queue, &setup.exchange, &setup.key);
    client.publish(&setup.exchange, &setup.key, [(b"no JSON".to_vec(), BasicProperties::default())]);
    daemon.wait_for("it is counted", |daemon| outcome(daemon, "malformed").eq(&1.0).then_some(()));
    eventually("it is parked", || client.ready(&setup.dead_queue)?.eq(&1).then_some(()));
    assert_eq!(client.ready(&setup.check_delay_queue("100ms")), Some(0));
    assert_eq!(client.ready(&setup.dead_queue), Some(1), "once");
    assert_eq!(client.ready(&setup.check_queue), Some(0));
    daemon.stop();
}

/// A source over a table of this database.
pub fn table_source(url: &str, table: &str, id: &str, status: &str, user: Option<&str>) -> Arc<dyn PaymentSource> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let settings = SqlSourceSettings {
        url: pointsd::database::DatabaseUrl::parse(url, None).unwrap(),
        table: TableName::new(table).unwrap(),
        id_column: Identifier::new(id).unwrap(),
        status_column: Identifier::new(status).unwrap(),
        value_column: None,
        valuation: None,
        user_column: user.map(|user| Identifier::new(user).unwrap()),
        values: StatusValues {
            paid: words(&["1", "paid"]),
            pending: words(&["0", "pending"]),
            closed: words(&["2", "closed"]),
        },
    };
    source(&PayStatusSettings::Sql(settings), Duration::from_secs(10), true, &Limits::default()).unwrap().unwrap()
}

fn look_up(source: &Arc<dyn PaymentSource>, ids: &[&str]) -> Vec<PaymentStatus> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answers = runtime.block_on(look_up_within(source, ids, Duration::from_secs(60))).unwrap();
    answers
        .into_iter()
        .map(|answer| match answer {
            Some(Lookup::Known(payment)) => payment.status,
            nothing => panic!("{nothing:?}"),
        })
        .collect()
}

pub async fn look_up_within(
    source: &Arc<dyn PaymentSource>,
    ids: &[&str],
    time: Duration,
) -> Result<Vec<Option<Lookup>>, BatchError> {
    let ids: Arc<[PaymentId]> = ids.iter().map(|id| PaymentId::new(id).unwrap()).collect();
    look_up_all(&**source, ids, Instant::now() + time).await
}

#[test]
fn ids_are_cast_to_whatever_type_the_column_has_and_statuses_compare_as_text() {
    use PaymentStatus::{Closed, Paid, Pending, Unknown, Unrecognised};
    let postgres = crate::support::postgres::shared().database();
    let execute = |sql: &str| crate::support::postgres::Postgres::execute(&postgres, sql);
    execute(
        "CREATE TYPE state AS ENUM ('pending', 'paid', 'closed', 'odd');
         CREATE DOMAIN short_id AS varchar(5); CREATE DOMAIN order_id AS short_id;
         CREATE TABLE a (id int PRIMARY KEY, s smallint); INSERT INTO a VALUES (1, 1), (2, 2), (3, NULL), (4, 7);
         CREATE TABLE b (id varchar(4) PRIMARY KEY, s state); INSERT INTO b VALUES ('abcd', 'paid'), ('x', 'odd');
         CREATE TABLE e (id state PRIMARY KEY, s text); INSERT INTO e VALUES ('paid', 'paid');
         CREATE TABLE c (id uuid PRIMARY KEY, s text);
         INSERT INTO c VALUES ('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'pending');
         CREATE TABLE d (id order_id, s text); INSERT INTO d VALUES ('twice', 'paid'), ('twice', 'closed'), ('same', 'paid'), ('same', 'paid');
         CREATE TABLE \"Odd \"\"name\" (\"the id\" numeric, \"select\" boolean); INSERT INTO \"Odd \"\"name\" VALUES (12345678901234567890, true)",
    );
    let cases: [(&str, &str, &str, &[(&str, PaymentStatus)]); 6] = [
        (
            "a",
            "id",
            "s",
            &[
                ("1", Paid),
                ("2", Closed),
                ("3", Unrecognised),
                ("4", Unrecognised),
                ("5", Unknown),
                ("99999999999", Unknown),
                ("x", Unknown),
                ("1.0", Unknown),
                ("'; DROP TABLE a; --", Unknown),
            ],
        ),
        ("e", "id", "s", &[("paid", Paid), ("nothing of it", Unknown), ("odd", Unknown)]),
        ("public.b", "id", "s", &[("abcd", Paid), ("abcde", Unknown), ("x", Unrecognised), ("ABCD", Unknown)]),
        (
            "c",
            "id",
            "s",
            &[("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", Pending), ("A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", Pending)],
        ),
        (
            "d",
            "id",
            "s",
            &[("twice", Unrecognised), ("same", Paid), ("same-but-longer", Unknown), ("twicely", Unknown)],
        ),
        ("Odd \"name", "the id", "select", &[("12345678901234567890", Unrecognised), ("1", Unknown)]),
    ];
    for (table, id, status, rows) in cases {
        let source = table_source(&postgres, table, id, status, None);
        let (ids, expected): (Vec<&str>, Vec<PaymentStatus>) = rows.iter().copied().unzip();
        assert_eq!(look_up(&source, &ids), expected, "{table}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let misspelt = table_source(&postgres, "a", "id", "staus", None);
    assert!(runtime.block_on(misspelt.probe()).unwrap_err().reason.contains("staus"));
    // An error of a view's own is one of that payment, not of an id that is none.
    execute(
        "CREATE TABLE fees (id text, s text, fee text); INSERT INTO fees VALUES ('1', 'paid', '1.5'), ('2', 'paid', '1,5');
         CREATE VIEW rated AS SELECT id, CASE WHEN fee::numeric > 0 THEN s END AS s FROM fees",
    );
    let rated = table_source(&postgres, "rated", "id", "s", None);
    assert_eq!(look_up(&rated, &["1"]), [Paid]);
    assert!(runtime.block_on(look_up_within(&rated, &["2"], Duration::from_secs(60))).is_err());
}

#[test]
fn sqlite_compares_ids_by_the_columns_type_and_a_file_that_is_broken_or_replaced_is_no_answer() {
    use PaymentStatus::{Closed, Paid, Unknown, Unrecognised};
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shop.db");
    {
        use diesel::{Connection, SqliteConnection, connection::SimpleConnection};
        let mut connection = SqliteConnection::establish(file.to_str().unwrap()).unwrap();
        connection
            .batch_execute(
                "CREATE TABLE a (id INTEGER PRIMARY KEY, s INTEGER); INSERT INTO a VALUES (1, 1), (2, 2), (3, NULL), (4, 7);
                 CREATE TABLE b (id TEXT PRIMARY KEY, s TEXT); INSERT INTO b VALUES ('1', 'paid'), ('01', 'closed');
                 CREATE TABLE untyped (id, s); INSERT INTO untyped VALUES (5, 'paid'), ('x', 'closed');
                 CREATE VIEW sums AS SELECT id + 0 AS id, s FROM a;",
            )
            .unwrap();
    }
    let url = format!("sqlite:{}", file.display());
    let numbers = table_source(&url, "a", "id", "s", None);
    assert_eq!(
        look_up(&numbers, &["1", "2", "3", "4", "5", "x", "99999999999999999999", "\"quoted\""]),
        [Paid, Closed, Unrecognised, Unrecognised, Unknown, Unknown, Unknown, Unknown]
    );
    let texts = table_source(&url, "main.b", "id", "s", None);
    assert_eq!(look_up(&texts, &["1", "01", "001"]), [Paid, Closed, Unknown]);
    let untyped = table_source(&url, "untyped", "id", "s", None);
    assert_eq!(look_up(&untyped, &["5", "x", "05"]), [Paid, Closed, Unknown]);
    assert_eq!(look_up(&table_source(&url, "sums", "id", "s", None), &["1", "2"]), [Paid, Closed]);
    // A column that is not there is no text of that name.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let misspelt = table_source(&url, "a", "id", "staus", None);
    assert!(runtime.block_on(misspelt.probe()).unwrap_err().reason.contains("staus"));
    // What is broken is no answer, and what is replaced is read anew.
    std::fs::write(&file, vec![0xff; 8192]).unwrap();
    let broken = table_source(&url, "a", "id", "s", None);
    assert!(runtime.block_on(look_up_within(&broken, &["1"], Duration::from_secs(60))).is_err());
    let other = folder.path().join("other.db");
    {
        use diesel::{Connection, SqliteConnection, connection::SimpleConnection};
        let mut connection = SqliteConnection::establish(other.to_str().unwrap()).unwrap();
        connection
            .batch_execute("CREATE TABLE a (id INTEGER PRIMARY KEY, s INTEGER); INSERT INTO a VALUES (1, 2)")
            .unwrap();
    }
    std::fs::rename(&other, &file).unwrap();
    assert!(runtime.block_on(numbers.probe()).is_err(), "told once");
    assert_eq!(look_up(&numbers, &["1"]), [Closed]);
    // The file of somebody else keeps its journal.
    assert!(!folder.path().join("shop.db-wal").exists());
}

#[test]
fn a_row_in_sqlite_is_repaired_whatever_the_type_of_its_id() {
    use diesel::{Connection, RunQueryDsl, SqliteConnection, connection::SimpleConnection, sql_query};
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shop.db");
    let mut shop = SqliteConnection::establish(file.to_str().unwrap()).unwrap();
    let gateway = Gateway::start(|id, _| if id == "9" { Reply::status(404) } else { Reply::trade("TRADE_SUCCESS") });
    for column in ["id INTEGER", "id TEXT", "id"] {
        shop.batch_execute(&format!(
            "DROP TABLE IF EXISTS p; CREATE TABLE p ({column}, s TEXT);
             INSERT INTO p VALUES (7, 'WAIT_BUYER_PAY'), (8, 'TRADE_CLOSED'), (9, 'WAIT_BUYER_PAY')"
        ))
        .unwrap();
        let place = Place::new(Kind::Sqlite);
        let settings = format!(
            "[pay_status.sql]\nurl = \"sqlite:{}\"\ntable = \"p\"\nid_column = \"id\"\nstatus_column = \"s\"\n\
             paid = [\"TRADE_SUCCESS\"]\npending = [\"WAIT_BUYER_PAY\"]\nclosed = [\"TRADE_CLOSED\"]\n{}",
            file.display(),
            gateway.settings()
        );
        let setup = setup(&place, "sql+http", &settings, "100ms", r#"["1h"]"#);
        let daemon = start(&setup);
        let client = Client::connect(&rabbit::shared().url());
        publish(&client, &setup, 7..=9);
        wait_for_state(&setup, &daemon, 7, &is("credited", true));
        wait_for_state(&setup, &daemon, 8, &is("reversed", false));
        wait_for_checks(&daemon, "pending", "recheck", 1.0);
        #[derive(diesel::QueryableByName)]
        struct Row {
            #[diesel(sql_type = diesel::sql_types::Text)]
            s: String,
        }
        let rows: Vec<Row> = sql_query("SELECT s FROM p ORDER BY CAST(id AS INTEGER)").load(&mut shop).unwrap();
        let rows: Vec<&str> = rows.iter().map(|row| row.s.as_str()).collect();
        assert_eq!(rows, ["TRADE_SUCCESS", "TRADE_CLOSED", "WAIT_BUYER_PAY"], "{column}");
        daemon.stop();
    }
}

#[test]
fn a_status_is_looked_up_by_the_index_of_the_ids_whatever_their_type() {
    let postgres = crate::support::postgres::shared().database();
    crate::support::postgres::Postgres::execute(
        &postgres,
        "CREATE TABLE many (id varchar(20) PRIMARY KEY, s int);
         INSERT INTO many SELECT n, 1 FROM generate_series(1, 200000) AS n; ANALYZE many",
    );
    let source = table_source(&postgres, "many", "id", "s", None);
    let ids: Vec<String> = (1..=1000).map(|n| (n * 199).to_string()).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    assert!(look_up(&source, &ids).iter().all(|status| *status == PaymentStatus::Paid));
    // One index scan an id, and not one row read by any other way.
    use diesel::{Connection, PgConnection, RunQueryDsl, connection::SimpleConnection, sql_query, sql_types::BigInt};
    #[derive(diesel::QueryableByName)]
    struct Count {
        #[diesel(sql_type = BigInt)]
        count: i64,
    }
    let mut connection = PgConnection::establish(&postgres).unwrap();
    let used = eventually("the statistics tell", || {
        connection.batch_execute("SELECT pg_stat_clear_snapshot()").unwrap();
        let query = "SELECT idx_scan AS count FROM pg_stat_user_tables WHERE relname = 'many' AND idx_scan > 0";
        sql_query(query).load::<Count>(&mut connection).unwrap().into_iter().next()
    });
    assert_eq!(used.count, 1000);
}

#[test]
fn a_gateway_with_a_private_authority_gets_the_headers_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, _) = tls::certificates(folder.path());
    let headers = folder.path().join("headers");
    std::fs::write(&headers, "Authorization: Bearer s3cret\n\nX-Shop: north\n").unwrap();
    let gateway = Gateway::start_on(0, Some(&certificate), |id, headers| {
        let known = headers["authorization"] == "Bearer s3cret" && headers["x-shop"] == "north";
        if known && id == "1" { Reply::trade("TRADE_SUCCESS") } else { Reply::status(403) }
    });
    let place = Place::new(Kind::Sqlite);
    let settings =
        gateway.settings().replace("http://127.0.0.1", "https://localhost") + &format!("headers_file = {headers:?}\n");
    let trusting = settings.clone() + &format!("ca_file = {:?}\n", certificate.ca);
    let setup = setup(&place, "http", &trusting, "100ms", "[]");
    let daemon = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    publish(&client, &setup, [1]);
    wait_for_state(&setup, &daemon, 1, &is("credited", true));
    daemon.stop();

    // Without the authority the gateway is not believed, and gets no header.
    let place = Place::new(Kind::Sqlite);
    let distrusting = crate::compensation::setup(&place, "http", &settings, "100ms", "[]");
    let daemon = start(&distrusting);
    publish(&client, &distrusting, [1]);
    wait_paused(&daemon, "certificate");
    assert_eq!(gateway.asked(), 1);
    daemon.stop();
}

#[test]
fn a_table_that_cannot_be_written_stops_nobody_and_a_row_that_stays_pending_has_lost_to_nobody() {
    let (place, payments) = (Place::new(Kind::Sqlite), Payments::new());
    let gateway = Gateway::start(|_, _| Reply::trade("TRADE_SUCCESS"));
    payments.set_all(&[(1, "WAIT_BUYER_PAY"), (2, "WAIT_BUYER_PAY"), (3, "TRADE_SUCCESS")]);
    // One row may not be written, and says so; another one is not, and says nothing.
    payments.execute(
        "CREATE FUNCTION shop.keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
           IF NEW.id = 1 THEN RAISE EXCEPTION 'read-only' USING ERRCODE = '25006'; END IF; RETURN NULL; END $$;
         CREATE TRIGGER keep BEFORE UPDATE ON shop.payments FOR EACH ROW EXECUTE FUNCTION shop.keep()",
    );
    let settings = payments.settings() + &gateway.settings();
    let setup = setup(&place, "sql+http", &settings, "100ms", r#"["1h"]"#);
    let daemon = setup.start_with(|command| {
        command.env("POINTSD_RETRY__DELAYS", "[]");
    });
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    publish(&client, &setup, 1..=3);
    wait_for_state(&setup, &daemon, 2, &is("credited", true));
    wait_for_state(&setup, &daemon, 3, &is("credited", true));
    eventually("the one that cannot be repaired is parked", || client.ready(&setup.dead_queue)?.eq(&1).then_some(()));
    let parked = client.take(&setup.dead_queue).unwrap();
    assert!(text(&parked, "x-pointsd-error").unwrap().contains("could not be set to paid"), "{parked:?}");
    assert!(!daemon.log().contains("paused"), "{}", daemon.log());
    daemon.stop();
}

#[test]
fn a_gateway_whose_store_is_down_is_an_outage_though_it_refuses_an_id_that_nobody_has() {
    let place = Place::new(Kind::Sqlite);
    let gateway = Gateway::start(|_, _| Reply::trade("TRADE_SUCCESS"));
    let setup = setup(&place, "http", &gateway.settings(), "300ms", r#"["1h"]"#);
    let daemon = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    publish(&client, &setup, [1]);
    wait_for_checks(&daemon, "paid", "verify", 1.0);
    let down = |id: &str, _: &axum::http::HeaderMap| {
        if id.parse::<u64>().is_ok() { Reply::status(502) } else { Reply::status(404) }
    };
    gateway.behave(down);
    publish(&client, &setup, [2]);
    wait_paused(&daemon, "502 Bad Gateway");
    gateway.behave(|_, _| Reply::trade("TRADE_SUCCESS"));
    wait_resumed(&daemon);
    wait_for_checks(&daemon, "paid", "verify", 2.0);
    daemon.stop();
    // Also where none was answered before, as soon as two fail. The first one, if it comes alone, may still be charged.
    gateway.behave(down);
    for id in [3, 4] {
        client.publish("", &setup.check_queue, [(crate::compensation::body(id, "u", 1), BasicProperties::default())]);
    }
    let daemon = start(&setup);
    wait_paused(&daemon, "502 Bad Gateway");
    // And it stays so, although an id that nobody has is answered for.
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        assert!(outcome(&daemon, "retry") <= 1.0);
        std::thread::sleep(Duration::from_millis(50));
    }
    wait_paused(&daemon, "502 Bad Gateway");
    assert_eq!(daemon.log().matches("resumed dependency=\"pay_status\"").count(), 0, "{}", daemon.log());
    daemon.stop();
}

#[test]
fn a_row_that_fails_alone_is_parked_also_when_it_was_looked_up_before_or_is_the_first() {
    let (place, payments) = (Place::new(Kind::Sqlite), Payments::new());
    payments.execute(
        "CREATE TABLE shop.fees (id bigint, status text, fee text);
         INSERT INTO shop.fees VALUES (1, 'WAIT_BUYER_PAY', '1.5'), (2, 'TRADE_SUCCESS', '1.5'), (3, 'TRADE_SUCCESS', '1,5');
         CREATE VIEW shop.rated AS SELECT id, CASE WHEN fee::numeric > 0 THEN status END AS \"Status\" FROM shop.fees",
    );
    let settings = payments.settings().replace("shop.payments", "shop.rated");
    let setup = setup(&place, "sql", &settings, "100ms", r#"["2s"]"#);
    let daemon = setup.start_with(|command| {
        command.env("POINTSD_RETRY__DELAYS", "[]");
    });
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    publish(&client, &setup, [3]);
    eventually("the first one is parked", || client.ready(&setup.dead_queue)?.eq(&1).then_some(()));
    publish(&client, &setup, [1]);
    wait_for_checks(&daemon, "pending", "recheck", 1.0);
    payments.execute("UPDATE shop.fees SET fee = '1,5' WHERE id = 1");
    eventually("so is the one that a probe would ask for", || client.ready(&setup.dead_queue)?.eq(&2).then_some(()));
    publish(&client, &setup, [2]);
    wait_for_state(&setup, &daemon, 2, &is("credited", true));
    assert!(!daemon.log().contains("paused"), "{}", daemon.log());
    daemon.stop();
}

#[test]
fn a_gateway_that_answers_for_others_only_is_tried_again_and_not_waited_for_without_end() {
    let place = Place::new(Kind::Sqlite);
    // What it does not know it forbids: also the id that nobody has.
    let gateway = Gateway::start(|id, _| if id == "2" { Reply::trade("TRADE_SUCCESS") } else { Reply::status(403) });
    let setup = setup(&place, "http", &gateway.settings(), "100ms", r#"["1h"]"#);
    let daemon = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    publish(&client, &setup, [1]);
    wait_paused(&daemon, "403 Forbidden");
    publish(&client, &setup, [2]);
    // After a minute of failed probes one delivery is tried, after another minute two.
    std::thread::sleep(Duration::from_secs(100));
    wait_for_state(&setup, &daemon, 2, &is("credited", true));
    wait_resumed(&daemon);
    daemon.wait_for("the other one is its own trouble now", |daemon| outcome(daemon, "retry").eq(&1.0).then_some(()));
    daemon.stop();
}

#[test]
fn a_table_in_which_nothing_may_be_written_pauses_the_checks_of_table_and_gateway() {
    let (place, payments) = (Place::new(Kind::Sqlite), Payments::new());
    let gateway = Gateway::start(|_, _| Reply::trade("TRADE_SUCCESS"));
    payments.set(1, "WAIT_BUYER_PAY");
    let role = crate::support::unique("reader").replace('-', "_");
    payments.execute(&format!(
        "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA shop TO {role}; GRANT SELECT ON shop.payments TO {role}"
    ));
    let settings = (payments.settings() + &gateway.settings()).replace("points@", &format!("{role}@"));
    let setup = setup(&place, "sql+http", &settings, "100ms", r#"["1h"]"#);
    let daemon = start(&setup);
    let client = Client::connect(&rabbit::shared().url());
    publish(&client, &setup, [1]);
    wait_paused(&daemon, "permission denied");
    payments.execute(&format!("GRANT UPDATE ON shop.payments TO {role}"));
    wait_resumed(&daemon);
    wait_for_state(&setup, &daemon, 1, &is("credited", true));
    assert_eq!((payments.status(1).as_str(), outcome(&daemon, "retry")), ("TRADE_SUCCESS", 0.0));
    daemon.stop();
}
