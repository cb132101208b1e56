//! What it costs to make every credit known: the same backlog credited with `[events]` off and on, in turns. Run by
//! `dev/bench events`. A figure to look at, not a test.

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
    rabbit, unique,
};

const CREDITS: u32 = 100_000;
const ROUNDS: usize = 3;

/// What is done about events.
#[derive(Debug, Clone, Copy)]
enum Events {
    Off,
    /// Written, and published to a queue.
    On,
}

/// Credits a second, and seconds until all of them are published.
fn round(kind: Kind, events: Events) -> (f64, f64) {
    let place = Place::new(kind);
    let exchange = unique("bench-events");
    let enabled = matches!(events, Events::On);
    let more = format!("[events]\nenabled = {enabled}\nexchange = {exchange:?}\n");
    let setup = Setup::new(&rabbit::shared().url(), &place.url, &more);
    assert!(setup.run(&["topology", "declare"]).status.success());
    let client = Client::connect(&rabbit::shared().url());
    let heard = format!("{exchange}.heard");
    if enabled {
        client.declare_queue(&heard, &[]);
        client.bind(&heard, &exchange, "#");
    }
    let persistent = BasicProperties::default().with_delivery_mode(2);
    for chunk in (1..=CREDITS).collect::<Vec<_>>().chunks(5000) {
        let body = |n: &u32| format!(r#"{{"paymentId": {n}, "userId": "u{}", "integral": 5}}"#, n % 1000).into_bytes();
        client.publish(&setup.exchange, &setup.key, chunk.iter().map(|n| (body(n), persistent.clone())));
    }
    let begun = Instant::now();
    let daemon = setup.start();
    daemon.wait_ready();
    let series = r#"pointsd_messages_total{queue="credit",outcome="credited"}"#;
    daemon.wait_for("all are credited", |daemon| (daemon.metric(series) >= f64::from(CREDITS)).then_some(()));
    let rate = f64::from(CREDITS) / begun.elapsed().as_secs_f64();
    if enabled {
        daemon.wait_for("all are published", |_| client.ready(&heard)?.ge(&CREDITS).then_some(()));
    }
    let published = begun.elapsed().as_secs_f64();
    daemon.stop();
    client.delete_queue(&setup.credit_queue);
    if enabled {
        client.delete_queue(&heard);
    }
    (rate, published)
}

fn main() {
    println!("{CREDITS} credits waiting in a quorum queue; median of {ROUNDS} rounds, off and on in turns\n");
    println!(
        "{:<12} {:>14} {:>14} {:>8} {:>22}",
        "ledger", "off: credits/s", "on: credits/s", "ratio", "on: published after"
    );
    let mut results = Vec::new();
    for (name, kind) in [("PostgreSQL", Kind::Postgres), ("SQLite", Kind::Sqlite)] {
        let (mut off, mut on, mut after) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            off.push(round(kind, Events::Off).0);
            let (rate, published) = round(kind, Events::On);
            on.push(rate);
            after.push(published);
        }
        let median = |mut rounds: Vec<f64>| {
            rounds.sort_by(f64::total_cmp);
            rounds[ROUNDS / 2]
        };
        let (off, on, after) = (median(off), median(on), median(after));
        println!("{name:<12} {off:>14.0} {on:>14.0} {:>8.2} {after:>20.1} s", on / off);
        results.push(serde_json::json!({
            "ledger": name, "off_credits_per_second": off, "on_credits_per_second": on, "ratio": on / off,
            "published_after_seconds": after
        }));
    }
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("events.json");
    std::fs::write(&file, serde_json::to_string_pretty(&results).unwrap()).unwrap();
    println!("\nalso in {}", file.display());
}
