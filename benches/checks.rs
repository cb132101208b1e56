//! How many checks a second the batch look-ups do, beside the broker and PostgreSQL on the same machine. Run by
//! `dev/bench checks`. A figure to look at, not a test.

#![allow(missing_docs, unreachable_pub, dead_code, reason = "it borrows what the integration tests stand on")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a program to look at"
)]

#[path = "../tests/it/support/mod.rs"]
mod support;

use lapin::BasicProperties;
use std::time::Instant;
use support::{
    amqp::Client,
    daemon::Setup,
    ledger::{Kind, Place},
    payments::Payments,
    rabbit,
};

const CHECKS: u64 = 100_000;
const ROUNDS: usize = 3;

/// Credits that stand in the ledger already, and the same payments in the shop's table.
fn fill(place: &Place, payments: &Payments, status: &str) {
    place.open().migrate().unwrap();
    let (series, credited) = match place.parsed() {
        pointsd::database::DatabaseUrl::Postgres(_) => {
            (format!("SELECT n::text AS n FROM generate_series(1, {CHECKS}) AS n"), "")
        }
        pointsd::database::DatabaseUrl::Sqlite(_) => (
            format!(
                "SELECT CAST(n AS TEXT) AS n FROM (WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {CHECKS}) SELECT n FROM s)"
            ),
            "",
        ),
    };
    place.execute(&format!(
        "INSERT INTO points_credits (payment_id, user_id, points) SELECT n, 'u' || substr(n, length(n), 1), 5 FROM ({series}) AS s {credited};
         INSERT INTO points_balances (user_id, balance) SELECT user_id, sum(points) FROM points_credits GROUP BY user_id"
    ));
    payments.execute(&format!(
        "INSERT INTO shop.payments (id, \"Status\", buyer) SELECT n, '{status}', 'u' FROM generate_series(1, {CHECKS}) AS n; ANALYZE shop.payments"
    ));
}

/// Checks a second.
fn round(kind: Kind, status: &str, step: &str) -> f64 {
    let (place, payments) = (Place::new(kind), Payments::new());
    fill(&place, &payments, status);
    let more = format!(
        "[compensation]\nfirst = \"1h\"\ndelays = [\"2h\"]\nbrake_after = 1000000\n[pay_status]\nsource = \"sql\"\n{}",
        payments.settings()
    );
    let setup = Setup::new(&rabbit::shared().url(), &place.url, &more);
    assert!(setup.run(&["topology", "declare"]).status.success());
    let client = Client::connect(&rabbit::shared().url());
    let persistent = BasicProperties::default().with_delivery_mode(2);
    for chunk in (1..=CHECKS).collect::<Vec<_>>().chunks(5000) {
        let body = |n: &u64| format!(r#"{{"paymentId": {n}, "userId": "u{}", "integral": 5}}"#, n % 10).into_bytes();
        client.publish("", &setup.check_queue, chunk.iter().map(|n| (body(n), persistent.clone())));
    }
    let daemon = setup.start();
    daemon.wait_ready();
    let begun = Instant::now();
    let series = format!(r#"pointsd_checks_total{{status="{status}",step="{step}"}}"#, status = word(status));
    let done = daemon.metric(&series);
    #[allow(clippy::cast_precision_loss, reason = "a count that fits")]
    let all = CHECKS as f64;
    daemon.wait_for("all are checked", |daemon| (daemon.metric(&series) >= all).then_some(()));
    let rate = (all - done) / begun.elapsed().as_secs_f64();
    daemon.stop();
    client.delete_queue(&setup.check_queue);
    rate
}

fn word(status: &str) -> &'static str {
    match status {
        "TRADE_SUCCESS" => "paid",
        "TRADE_CLOSED" => "closed",
        _ => "pending",
    }
}

fn main() {
    let scenarios = [
        ("PostgreSQL, paid: verify", Kind::Postgres, "TRADE_SUCCESS", "verify"),
        ("PostgreSQL, closed: reverse", Kind::Postgres, "TRADE_CLOSED", "reverse"),
        ("PostgreSQL, pending: recheck", Kind::Postgres, "WAIT_BUYER_PAY", "recheck"),
        ("SQLite, paid: verify", Kind::Sqlite, "TRADE_SUCCESS", "verify"),
    ];
    println!(
        "{CHECKS} checks, payment table in PostgreSQL, quorum queue; median, lowest and highest of {ROUNDS} rounds\n"
    );
    println!("{:<30} {:>12} {:>12} {:>12}", "scenario", "checks/s", "lowest", "highest");
    let mut results = Vec::new();
    for (name, kind, status, step) in scenarios {
        let mut rounds: Vec<f64> = (0..ROUNDS).map(|_| round(kind, status, step)).collect();
        rounds.sort_by(f64::total_cmp);
        let (lowest, median, highest) = (rounds[0], rounds[ROUNDS / 2], rounds[ROUNDS - 1]);
        println!("{name:<30} {median:>12.0} {lowest:>12.0} {highest:>12.0}");
        results.push(serde_json::json!({
            "scenario": name, "checks_per_second": median, "lowest": lowest, "highest": highest
        }));
    }
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("checks.json");
    std::fs::write(&file, serde_json::to_string_pretty(&results).unwrap()).unwrap();
    println!("\nalso in {}", file.display());
}
