//! Payment sources without a daemon: how answers arrive, how ids are written, and how a gateway's limits are kept.

use crate::{
    payment_sources::{look_up_within, table_source},
    support::{
        gateway::{Gateway, Reply},
        payments::Payments,
        postgres::{self, Postgres},
    },
};
use diesel::{Connection, SqliteConnection, connection::SimpleConnection};
use pointsd::{
    database::DatabaseUrl,
    domain::{
        failure::BatchError,
        id_rule::{IdPattern, IdRule},
        ids::PaymentId,
        status::{PaymentStatus, StatusValues},
    },
    pay_status::{
        Identifier, Limits, TableName, UrlTemplate,
        settings::{HttpSourceSettings, PayStatusSettings, SqlSourceSettings},
        source,
    },
    pipeline::ports::{Lookup, Payment, PaymentSource},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

const MINUTE: Duration = Duration::from_secs(60);

fn values() -> StatusValues {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    StatusValues {
        paid: words(&["TRADE_SUCCESS"]),
        pending: words(&["WAIT_BUYER_PAY"]),
        closed: words(&["TRADE_CLOSED"]),
    }
}

fn http(gateway: &Gateway) -> HttpSourceSettings {
    HttpSourceSettings {
        url: UrlTemplate::parse(&format!("http://127.0.0.1:{}/payments/{{payment_id}}", gateway.port)).unwrap(),
        status_pointer: "/data/status".to_owned(),
        values: values(),
        timeout: Duration::from_secs(5),
        concurrency: 16,
        headers: Vec::new(),
        ca: None,
        files: pointsd::pay_status::settings::HttpFiles::default(),
        payment_ids: IdRule::UrlSafe,
    }
}

/// The daemon installs it first thing.
fn install_tls() {
    // Another test may have done so.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn gateway_source(settings: HttpSourceSettings) -> Arc<dyn PaymentSource> {
    install_tls();
    source(&PayStatusSettings::Http(settings), Duration::from_secs(10), true, &Limits::default()).unwrap().unwrap()
}

/// `shop.payments` first, then the gateway.
fn table_then_gateway(payments: &Payments, gateway: &Gateway) -> Arc<dyn PaymentSource> {
    install_tls();
    let table = SqlSourceSettings {
        url: DatabaseUrl::parse(&payments.url, None).unwrap(),
        table: TableName::new("shop.payments").unwrap(),
        id_column: Identifier::new("id").unwrap(),
        status_column: Identifier::new("Status").unwrap(),
        user_column: Some(Identifier::new("buyer").unwrap()),
        value_column: None,
        valuation: None,
        values: values(),
    };
    let settings = PayStatusSettings::SqlThenHttp(table, http(gateway));
    source(&settings, Duration::from_secs(10), true, &Limits::default()).unwrap().unwrap()
}

async fn look_up(source: &Arc<dyn PaymentSource>, ids: &[&str]) -> Result<Vec<Option<Lookup>>, BatchError> {
    look_up_within(source, ids, MINUTE).await
}

fn statuses(answers: &[Option<Lookup>]) -> Vec<PaymentStatus> {
    let status = |answer: &Option<Lookup>| match answer {
        Some(Lookup::Known(payment)) => payment.status,
        other => panic!("{other:?}"),
    };
    answers.iter().map(status).collect()
}

/// The answers in the order in which they arrive, each with the time since the beginning.
async fn arrivals(source: &Arc<dyn PaymentSource>, ids: &[&str]) -> Vec<(usize, Duration, Lookup)> {
    let ids: Arc<[PaymentId]> = ids.iter().map(|id| PaymentId::new(id).unwrap()).collect();
    let (begun, mut arrived) = (Instant::now(), Vec::new());
    let mut keep = |index, lookup| arrived.push((index, begun.elapsed(), lookup));
    source.look_up(ids, begun + MINUTE, &mut keep).await.unwrap();
    arrived
}

/// How the source writes each id; `None` where the payment is unknown, or has no spelling of its own.
async fn spellings(source: &Arc<dyn PaymentSource>, ids: &[&str]) -> Vec<Option<String>> {
    let answers = look_up(source, ids).await.unwrap();
    let id = |answer: Option<Lookup>| match answer {
        Some(Lookup::Known(Payment { id, status, .. })) => {
            assert!(id.is_none() || status != PaymentStatus::Unknown);
            id
        }
        other => panic!("{other:?}"),
    };
    answers.into_iter().map(id).collect()
}

async fn assert_spellings(url: &str, cases: &[(&str, &[(&str, Option<&str>)])]) {
    for (table, expected) in cases {
        let source = table_source(url, table, "id", "s", None);
        let (ids, expected): (Vec<&str>, Vec<Option<&str>>) = expected.iter().copied().unzip();
        let found = spellings(&source, &ids).await;
        let found: Vec<Option<&str>> = found.iter().map(Option::as_deref).collect();
        assert_eq!(found, expected, "{table}: {ids:?}");
    }
}

#[tokio::test]
async fn a_payment_of_postgres_has_the_canonical_spelling_of_its_id() {
    const UUID: Option<&str> = Some("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11");
    let url = postgres::shared().database();
    Postgres::execute(
        &url,
        "CREATE TABLE uuids (id uuid PRIMARY KEY, s text);
         INSERT INTO uuids VALUES ('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'paid');
         CREATE TABLE numbers (id bigint PRIMARY KEY, s text); INSERT INTO numbers VALUES (7, 'paid'), (-7, NULL);
         CREATE TABLE fixed (id char(6) PRIMARY KEY, s text); INSERT INTO fixed VALUES ('P7', 'paid');
         CREATE TABLE exact (id numeric(10,2) PRIMARY KEY, s text);
         INSERT INTO exact VALUES (7, 'paid'), (7.5, 'paid'), (700, 'paid');
         CREATE TABLE texts (id varchar(10) PRIMARY KEY, s text); INSERT INTO texts VALUES ('007', 'paid'), ('7.00', 'paid');
         CREATE TABLE floats (id double precision PRIMARY KEY, s text); INSERT INTO floats VALUES (7, 'paid'), (1e14, 'paid');
         CREATE TABLE reals (id real PRIMARY KEY, s text); INSERT INTO reals VALUES (16777216, 'paid');
         CREATE DOMAIN amount AS numeric; CREATE TABLE domains (id amount, s text); INSERT INTO domains VALUES (7.10, 'paid')",
    );
    let uuids: &[(&str, Option<&str>)] = &[
        ("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", UUID),
        ("A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", UUID),
        ("{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}", UUID),
        ("a0eebc999c0b4ef8bb6d6bb9bd380a11", UUID),
        ("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a12", None),
    ];
    let numbers: &[(&str, Option<&str>)] =
        &[("7", Some("7")), ("007", Some("7")), ("+7", Some("7")), ("-7", Some("-7")), ("8", None)];
    let exact: &[(&str, Option<&str>)] =
        &[("7", Some("7")), ("7.00", Some("7")), ("7.50", Some("7.5")), ("700", Some("700")), ("7e2", Some("700"))];
    assert_spellings(
        &url,
        &[
            ("uuids", uuids),
            ("numbers", numbers),
            ("fixed", &[("P7", Some("P7")), ("p7", None)]),
            ("exact", exact),
            ("texts", &[("007", Some("007")), ("7.00", Some("7.00")), ("7", None)]),
            ("floats", &[("7.0", Some("7")), ("1e14", Some("100000000000000"))]),
            ("reals", &[("16777216", Some("16777216")), ("16777217", Some("16777216"))]),
            ("domains", &[("7.1", Some("7.1"))]),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_payment_of_sqlite_has_the_canonical_spelling_of_its_id() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shop.db");
    SqliteConnection::establish(file.to_str().unwrap())
        .unwrap()
        .batch_execute(
            "CREATE TABLE numbers (id INTEGER PRIMARY KEY, s TEXT); INSERT INTO numbers VALUES (7, 'paid');
             CREATE TABLE reals (id REAL PRIMARY KEY, s TEXT);
             INSERT INTO reals VALUES (7, 'paid'), (7.5, 'paid'), (1e20, 'paid');
             CREATE TABLE texts (id TEXT PRIMARY KEY, s TEXT); INSERT INTO texts VALUES ('007', 'paid'), ('7.0', 'paid');",
        )
        .unwrap();
    let reals: &[(&str, Option<&str>)] =
        &[("7", Some("7")), ("7.0", Some("7")), ("7.50", Some("7.5")), ("1e20", None), ("8", None)];
    assert_spellings(
        &format!("sqlite:{}", file.display()),
        &[
            ("numbers", &[("7", Some("7")), ("007", Some("7")), ("+7", Some("7")), ("8", None)]),
            ("reals", reals),
            ("texts", &[("007", Some("007")), ("7.0", Some("7.0")), ("7", None)]),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_large_look_up_is_split_and_none_begins_after_its_time() {
    let url = postgres::shared().database();
    Postgres::execute(
        &url,
        "CREATE TABLE many (id int PRIMARY KEY, s text); INSERT INTO many SELECT n, 'paid' FROM generate_series(1, 2500) AS n",
    );
    let source = table_source(&url, "many", "id", "s", None);
    let ids: Vec<String> = (1..=2501).map(|n| n.to_string()).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let mut found = spellings(&source, &ids).await;
    assert_eq!(found.pop(), Some(None), "the last one is not there");
    assert!(found.iter().zip(&ids).all(|(found, id)| found.as_deref() == Some(*id)));
    let past = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
    let ids: Arc<[PaymentId]> = ids.iter().map(|id| PaymentId::new(id).unwrap()).collect();
    source.look_up(ids, past, &mut |index, _| panic!("{index} was asked for")).await.unwrap();
}

#[tokio::test]
async fn an_id_that_could_change_the_url_never_leads_to_a_request() {
    let gateway = Gateway::start(|_, _| Reply::trade("TRADE_SUCCESS"));
    let source = gateway_source(http(&gateway));
    let ids = ["x/../P1", ".", "..", "a%2fb", "a?b", "a#b", "a;b", "a\\b"];
    for answer in look_up(&source, &ids).await.unwrap() {
        let Some(Lookup::Failed(error)) = answer else { panic!("{answer:?}") };
        assert!(error.starts_with("the payment ID is unsafe in a URL"), "{error}");
    }
    assert_eq!(gateway.asked(), 0);
    // Beside others, and where the table does not decide.
    let payments = Payments::new();
    let both = table_then_gateway(&payments, &gateway);
    let answers = look_up(&both, &["x/../P1", "P1"]).await.unwrap();
    assert!(matches!(&answers[0], Some(Lookup::Failed(_))), "{answers:?}");
    assert_eq!((statuses(&answers[1..]), gateway.asked()), (vec![PaymentStatus::Paid], 1));
    // A pattern replaces the rule.
    let shop = IdRule::Matching(IdPattern::new("shop/[0-9]+").unwrap());
    let source = gateway_source(HttpSourceSettings { payment_ids: shop, ..http(&gateway) });
    let answers = look_up(&source, &["shop/1", "1"]).await.unwrap();
    assert!(matches!(answers[..], [Some(Lookup::Known(_)), Some(Lookup::Failed(_))]), "{answers:?}");
    assert_eq!(gateway.asked(), 2);
}

#[tokio::test]
async fn six_hundred_payments_pass_a_gateway_that_admits_twenty_a_second() {
    let gateway = Gateway::start(|_, _| Reply::status(500));
    let admission = gateway.admit(20, |_| Reply::trade("TRADE_SUCCESS"));
    let source = gateway_source(http(&gateway));
    let ids: Vec<String> = (0..600).map(|n| format!("P{n}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let begun = Instant::now();
    let answers = look_up_within(&source, &ids, MINUTE * 5).await.unwrap();
    let took = begun.elapsed();
    assert!(statuses(&answers).iter().all(|status| *status == PaymentStatus::Paid));
    let admission = admission.lock().unwrap();
    let (refused, admitted) = (admission.refused, admission.admitted.values().sum::<u64>());
    println!("600 payments: {refused} refusals, {admitted} admitted, in {took:?}");
    assert!(refused < 200, "{refused} refusals");
    assert!(took < Duration::from_secs(90), "{took:?}");
}

#[tokio::test]
async fn one_slow_id_does_not_delay_the_others() {
    let gateway = Gateway::start(|id, _| match id {
        "1" => Reply { delay: Duration::from_secs(3), ..Reply::trade("TRADE_SUCCESS") },
        "4" => Reply::trade("WAIT_BUYER_PAY"),
        _ => Reply::trade("TRADE_SUCCESS"),
    });
    let payments = Payments::new();
    payments.set_all(&[
        (1, "WAIT_BUYER_PAY"),
        (2, "WAIT_BUYER_PAY"),
        (3, "TRADE_SUCCESS"),
        (4, "WAIT_BUYER_PAY"),
        (5, "TRADE_CLOSED"),
    ]);
    let source = table_then_gateway(&payments, &gateway);
    let arrived = arrivals(&source, &["1", "2", "3", "4", "5", "007"]).await;
    let order: Vec<usize> = arrived.iter().map(|(index, ..)| *index).collect();
    assert_eq!((&order[..2], order[5], order.len()), (&[2, 4][..], 0, 6), "the table decides two: {arrived:?}");
    for (index, after, lookup) in &arrived {
        let (slow, late) = (*index == 0, *after >= Duration::from_millis(2900));
        assert!(slow == late && (slow || *after < Duration::from_millis(1500)), "{index}: {after:?}");
        let Lookup::Known(payment) = lookup else { panic!("{lookup:?}") };
        let (id, user) = (payment.id.as_deref(), payment.user.as_deref());
        let expected = [Some("1"), Some("2"), Some("3"), Some("4"), Some("5"), None][*index];
        assert_eq!((id, user), (expected, expected.map(|_| "u")), "{index}");
    }
    assert_eq!((payments.status(1), payments.status(2)), ("TRADE_SUCCESS".into(), "TRADE_SUCCESS".into()));
    assert_eq!(payments.status(4), "WAIT_BUYER_PAY");
}

#[tokio::test]
async fn answers_of_the_gateway_do_not_wait_for_a_repair() {
    let gateway = Gateway::start(|id, _| match id {
        "1" => Reply::trade("TRADE_SUCCESS"),
        _ => Reply { delay: Duration::from_millis(500), ..Reply::trade("TRADE_CLOSED") },
    });
    let payments = Payments::new();
    payments.set_all(&[(1, "WAIT_BUYER_PAY"), (2, "WAIT_BUYER_PAY")]);
    payments.execute(
        "CREATE FUNCTION shop.wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(2); RETURN NEW; END $$;
         CREATE TRIGGER wait BEFORE UPDATE ON shop.payments FOR EACH ROW EXECUTE FUNCTION shop.wait()",
    );
    let source = table_then_gateway(&payments, &gateway);
    let arrived = arrivals(&source, &["1", "2"]).await;
    let order: Vec<usize> = arrived.iter().map(|(index, ..)| *index).collect();
    assert_eq!(order, [1, 0]);
    assert!(arrived[0].1 < Duration::from_millis(1800), "{arrived:?}");
}

#[tokio::test]
async fn a_retry_after_is_kept_and_costs_no_payment_its_answer() {
    let (gateway, first) = (Gateway::start(|_, _| Reply::status(500)), Arc::new(AtomicBool::new(true)));
    gateway.behave(move |_, _| {
        if first.swap(false, Ordering::Relaxed) {
            Reply { retry_after: Some("2".into()), ..Reply::status(503) }
        } else {
            Reply::trade("TRADE_SUCCESS")
        }
    });
    let source = gateway_source(HttpSourceSettings { concurrency: 1, ..http(&gateway) });
    let begun = Instant::now();
    let answers = look_up(&source, &["1", "2", "3"]).await.unwrap();
    assert_eq!(statuses(&answers), [PaymentStatus::Paid; 3]);
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(gateway.asked(), 4, "one was refused, and asked for again");
}

#[tokio::test]
async fn a_retry_after_beyond_the_look_up_is_an_outage_and_a_probe_asks_nothing_until_it_is_over() {
    let gateway = Gateway::start(|_, _| Reply { retry_after: Some("30".into()), ..Reply::status(429) });
    let source = gateway_source(HttpSourceSettings { concurrency: 1, ..http(&gateway) });
    let begun = Instant::now();
    let error = look_up_within(&source, &["1", "2"], Duration::from_secs(5)).await.unwrap_err();
    let BatchError::Outage(outage) = error else { panic!("{error:?}") };
    assert_eq!(outage.reason, "the payment service asks to wait for 30 s");
    let probed = source.probe().await.unwrap_err();
    assert_eq!(probed.reason, "the payment service asks to wait for 30 s");
    assert!(look_up_within(&source, &["1"], Duration::from_secs(5)).await.is_err());
    assert!(begun.elapsed() < Duration::from_secs(2), "nothing waits: {:?}", begun.elapsed());
    assert_eq!(gateway.asked(), 1);
    // Once another payment was answered, those that are left are not asked for.
    let answered = AtomicBool::new(false);
    let gateway = Gateway::start(move |_, _| {
        if answered.swap(true, Ordering::Relaxed) {
            Reply { retry_after: Some("30".into()), ..Reply::status(429) }
        } else {
            Reply::trade("TRADE_SUCCESS")
        }
    });
    let source = gateway_source(HttpSourceSettings { concurrency: 1, ..http(&gateway) });
    let answers = look_up_within(&source, &["1", "2", "3"], Duration::from_secs(5)).await.unwrap();
    let known = answers.iter().filter(|answer| matches!(answer, Some(Lookup::Known(_)))).count();
    let not_asked = answers.iter().filter(|answer| answer.is_none()).count();
    assert_eq!((known, not_asked, gateway.asked()), (1, 2, 2), "{answers:?}");
}

#[tokio::test]
async fn a_gateway_that_refuses_everything_is_an_outage() {
    let gateway = Gateway::start(|_, _| Reply::status(429));
    let source = gateway_source(http(&gateway));
    let ids: Vec<String> = (0..50).map(|n| n.to_string()).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let begun = Instant::now();
    let error = look_up(&source, &ids).await.unwrap_err();
    let BatchError::Outage(outage) = error else { panic!("{error:?}") };
    assert_eq!(outage.reason, "the payment service: answered 429 Too Many Requests");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(gateway.asked() <= 16 + 5, "{} requests", gateway.asked());
    assert!(source.probe().await.is_err());
    gateway.behave(|_, _| Reply::trade("TRADE_SUCCESS"));
    source.probe().await.unwrap();
}

#[tokio::test]
async fn a_payment_that_is_refused_while_others_are_answered_fails_alone() {
    let refused = Arc::new(AtomicU64::new(0));
    let counts = Arc::clone(&refused);
    let gateway = Gateway::start(move |id, _| {
        if id == "7" {
            counts.fetch_add(1, Ordering::Relaxed);
            return Reply::status(429);
        }
        Reply::trade("TRADE_SUCCESS")
    });
    let source = gateway_source(http(&gateway));
    let ids: Vec<String> = (1..=20).map(|n| n.to_string()).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    for ids in [&ids[..], &["7"]] {
        refused.store(0, Ordering::Relaxed);
        let answers = look_up(&source, ids).await.unwrap();
        for (id, answer) in ids.iter().zip(answers) {
            match answer {
                Some(Lookup::Known(_)) => assert_ne!(*id, "7"),
                Some(Lookup::Failed(error)) => {
                    assert_eq!(*id, "7");
                    assert!(error.contains("answered 429 Too Many Requests 3 times"), "{error}");
                }
                None => panic!("{id} was not asked for"),
            }
        }
        let refused = refused.load(Ordering::Relaxed);
        assert!((3..=4).contains(&refused), "{refused} refusals");
    }
}

#[tokio::test]
async fn no_request_begins_after_the_time_of_a_look_up() {
    let gateway = Gateway::start(|_, _| Reply { delay: Duration::from_millis(600), ..Reply::trade("TRADE_SUCCESS") });
    let source = gateway_source(HttpSourceSettings { concurrency: 1, ..http(&gateway) });
    let answers = look_up_within(&source, &["1", "2", "3", "4"], Duration::from_secs(1)).await.unwrap();
    let known = answers.iter().filter(|answer| matches!(answer, Some(Lookup::Known(_)))).count();
    let not_asked = answers.iter().filter(|answer| answer.is_none()).count();
    assert_eq!((known, not_asked, gateway.asked()), (2, 2, 2), "{answers:?}");
    let answers = look_up_within(&source, &["1"], Duration::ZERO).await.unwrap();
    assert_eq!((answers, gateway.asked()), (vec![None], 2));
}

#[tokio::test]
async fn failures_are_withheld_until_another_payment_is_answered() {
    let gateway = Gateway::start(|id, _| match id {
        "1" => Reply::status(500),
        _ => Reply { delay: Duration::from_millis(300), ..Reply::trade("TRADE_SUCCESS") },
    });
    let source = gateway_source(http(&gateway));
    let arrived = arrivals(&source, &["1", "2"]).await;
    assert!(
        matches!(&arrived[..], [(1, _, Lookup::Known(_)), (0, _, Lookup::Failed(error))] if error.contains("answered 500")),
        "{arrived:?}"
    );
    // Without one it is an outage, and nothing was handed over.
    gateway.behave(|_, _| Reply::status(500));
    let ids: Arc<[PaymentId]> = [1, 2].map(|n| PaymentId::new(&n.to_string()).unwrap()).into();
    let mut refuse = |index: usize, lookup: Lookup| panic!("{index}: {lookup:?}");
    let error = source.look_up(ids, Instant::now() + MINUTE, &mut refuse).await.unwrap_err();
    assert!(matches!(error, BatchError::Outage(_)), "{error:?}");
}
