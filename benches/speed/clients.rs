//! The references: what the daemon is compared with. Each runs as a process of its own, as the daemon does, so that its
//! processor time and memory can be read in the same way; it prints how long it took.

use crate::load::Load;
use diesel::{Connection as _, ExpressionMethods, OptionalExtension, PgConnection, QueryDsl, RunQueryDsl};
use futures_util::StreamExt;
use lapin::{
    Connection, ConnectionProperties,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use pointsd::{
    database::DatabaseUrl,
    domain::{
        credit::{Credit, MAX_POINTS_LIMIT},
        field_paths::FieldPaths,
        id_rule::IdRule,
        message::Format,
    },
    ledger::{Access, Options, open},
    pipeline::ports::Patience,
};
use serde::{Deserialize, Serialize};
use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

/// What a reference does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Client {
    /// Takes messages and acknowledges prefixes of so many, and nothing else: the broker's limit.
    Drain { broker: String, queue: String, messages: u64, prefetch: u16, batch: usize },
    /// Credits batches that stand in memory, over so many connections: the database's limit.
    Insert { ledger: String, load: Load, batch: usize, connections: u32 },
    /// A select, an insert in its own commit and an ack for each message: what the field usually runs.
    OneByOne { broker: String, queue: String, ledger: String, messages: u64, prefetch: u16 },
}

/// Reads a body with the limits that nobody's load here meets.
fn format() -> Format {
    Format {
        paths: FieldPaths::default(),
        max_body_bytes: 65_536,
        max_points: MAX_POINTS_LIMIT,
        payment_ids: IdRule::Any,
    }
}

impl Client {
    /// Does it, and answers how long it took, beginning when it is connected.
    pub fn run(self) -> Duration {
        match self {
            Self::Drain { broker, queue, messages, prefetch, batch } => {
                drain(&broker, &queue, messages, prefetch, batch as u64)
            }
            Self::Insert { ledger, load, batch, connections } => insert(&ledger, load, batch, connections),
            Self::OneByOne { broker, queue, ledger, messages, prefetch } => {
                one_by_one(&broker, &queue, &ledger, messages, prefetch)
            }
        }
    }
}

async fn consumer(broker: &str, queue: &str, prefetch: u16) -> (Connection, lapin::Channel, lapin::Consumer) {
    let connection = Connection::connect(broker, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.basic_qos(prefetch, BasicQosOptions { global: false }).await.unwrap();
    let options = BasicConsumeOptions { no_local: false, no_ack: false, exclusive: false, nowait: false };
    let consumer = channel.basic_consume(queue.into(), "bench".into(), options, FieldTable::default()).await.unwrap();
    (connection, channel, consumer)
}

#[tokio::main]
async fn drain(broker: &str, queue: &str, messages: u64, prefetch: u16, batch: u64) -> Duration {
    let (connection, channel, mut consumer) = consumer(broker, queue, prefetch).await;
    let begun = Instant::now();
    for taken in 1..=messages {
        let delivery = consumer.next().await.unwrap().unwrap();
        // Full prefixes: an acknowledgement for whatever has arrived would be one for a few.
        if taken % batch == 0 || taken == messages {
            channel.basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: true }).await.unwrap();
        }
    }
    // Answered after the acknowledgements before it.
    channel.basic_qos(prefetch, BasicQosOptions { global: false }).await.unwrap();
    let took = begun.elapsed();
    connection.close(200, "done".into()).await.unwrap();
    took
}

fn insert(ledger: &str, load: Load, batch: usize, connections: u32) -> Duration {
    let format = format();
    let credits: Vec<Credit> = load.bodies().filter_map(|body| format.parse(&body).ok()).collect();
    let url = DatabaseUrl::parse(ledger, None).unwrap();
    let options =
        Options { pool_size: connections, timeout: Duration::from_secs(60), access: Access::Write, events: None };
    let ledger = open(&url, &options);
    let batches = Mutex::new(credits.chunks(batch));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..connections {
            scope.spawn(|| {
                loop {
                    let Some(batch) = batches.lock().unwrap().next() else { break };
                    ledger.credit(batch, Patience::Usual).unwrap();
                }
            });
        }
    });
    begun.elapsed()
}

diesel::table! {
    points_credits (payment_id) {
        payment_id -> Text,
        user_id -> Text,
        points -> BigInt,
    }
}

#[tokio::main]
async fn one_by_one(broker: &str, queue: &str, ledger: &str, messages: u64, prefetch: u16) -> Duration {
    let format = format();
    let mut database = PgConnection::establish(ledger).unwrap();
    let (connection, channel, mut consumer) = consumer(broker, queue, prefetch).await;
    let begun = Instant::now();
    for _ in 0..messages {
        let delivery = consumer.next().await.unwrap().unwrap();
        let credit = format.parse(&delivery.data).unwrap();
        let (payment, user) = (credit.payment_id.as_str(), credit.user_id.as_str());
        tokio::task::block_in_place(|| {
            let standing =
                points_credits::table.find(payment).select((points_credits::user_id, points_credits::points));
            let standing: Option<(String, i64)> = standing.first(&mut database).optional().unwrap();
            if standing.is_none() {
                let new = (
                    points_credits::payment_id.eq(payment),
                    points_credits::user_id.eq(user),
                    points_credits::points.eq(credit.points.get()),
                );
                diesel::insert_into(points_credits::table).values(new).execute(&mut database).unwrap();
            }
        });
        channel.basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: false }).await.unwrap();
    }
    let took = begun.elapsed();
    connection.close(200, "done".into()).await.unwrap();
    took
}
