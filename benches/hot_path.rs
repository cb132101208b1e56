//! What every message passes through in this process, without servers: reading its body, and keeping book of what is settled.
//! `dev/bench micro` runs it; criterion compares with the run before.

#![allow(missing_docs, clippy::unwrap_used, reason = "a program to look at; criterion's macros document nothing")]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pointsd::domain::{
    ack_tracker::{AckTracker, Token},
    credit::MAX_POINTS_LIMIT,
    field_paths::FieldPaths,
    id_rule::IdRule,
    message::Format,
    notification::NotificationFormat,
};
use std::hint::black_box;

fn format() -> Format {
    Format {
        paths: FieldPaths::default(),
        max_body_bytes: 65_536,
        max_points: MAX_POINTS_LIMIT,
        payment_ids: IdRule::Any,
    }
}

fn parsing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse");
    let long = format!(
        r#"{{"event":"paid","items":[{}],"customer":{{"name":"someone","tags":["a","b"]}},"payment_id":"{}","userId":"u-77","points":12}}"#,
        r#"{"sku":"0123456789","price":12.5,"text":"a line of an order"},"#.repeat(30).trim_end_matches(','),
        "9f86d081884c7d659a2feaa0c55ad015"
    );
    let format_of_pointers = Format {
        paths: FieldPaths::new([Some("/data/order/id"), Some("/data/user"), Some("/data/integral")]).unwrap(),
        ..format()
    };
    let bodies: [(&str, &Format, &str); 5] = [
        ("usual", &format(), r#"{"paymentId": 202002201101, "userId": 1101, "integral": 100}"#),
        (
            "text ids",
            &format(),
            r#"{"paymentId":"9f86d081884c7d659a2feaa0c55ad015","userId":"user-77","integral":100}"#,
        ),
        ("2 KiB of other fields", &format(), &long),
        ("by JSON Pointers", &format_of_pointers, r#"{"data":{"order":{"id":"A-1"},"user":"u-1","integral":5}}"#),
        ("malformed", &format(), r#"{"paymentId": 202002201101, "userId": 1101, "integral": 0}"#),
    ];
    for (name, format, body) in bodies {
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(name, |bencher| bencher.iter(|| format.parse(black_box(body.as_bytes()))));
    }
    group.finish();
    let java = include_bytes!("../tests/fixtures/java/long.ser");
    let format = format();
    criterion.bench_function("parse/a serialized java.lang.Long", |bencher| {
        bencher.iter(|| NotificationFormat::PaymentId.parse(black_box(java), &format));
    });
}

/// As many deliveries as a consumer may hold, settled by two workers whose batches interleave.
fn settling(criterion: &mut Criterion) {
    const DELIVERIES: u64 = 2000;
    let mut group = criterion.benchmark_group("settle");
    group.throughput(Throughput::Elements(DELIVERIES));
    group.bench_function("in order, one prefix", |bencher| {
        bencher.iter_batched(
            || (tracker(), Vec::with_capacity(2000)),
            |(mut tracker, mut tokens)| {
                tokens.extend((1..=DELIVERIES).map(|tag| tracker.delivered(tag).unwrap()));
                tokens.drain(..).for_each(|token: Token| tracker.settle(token));
                tracker.settled_prefix()
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("the later half first", |bencher| {
        bencher.iter_batched(
            || (tracker(), Vec::with_capacity(2000)),
            |(mut tracker, mut tokens)| {
                tokens.extend((1..=DELIVERIES).map(|tag| tracker.delivered(tag).unwrap()));
                for token in tokens.split_off(1000).into_iter().chain(tokens) {
                    tracker.settle(token);
                }
                tracker.settled_prefix()
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn tracker() -> AckTracker {
    let mut tracker = AckTracker::default();
    tracker.channel_opened();
    tracker
}

criterion_group!(hot_path, parsing, settling);
criterion_main!(hot_path);
