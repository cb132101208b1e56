//! What is credited: made-up payments, the same for the daemon and its references.

use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use pointsd::domain::check_message::CONTENT_TYPE as CHECKS;
use serde::{Deserialize, Serialize};
use std::{
    collections::VecDeque,
    time::{Duration, Instant, SystemTime},
};

/// How many users share the payments.
const USERS: u64 = 50_000;

/// How far a copy comes behind its original, except at the very beginning: in another batch.
const COPY_DISTANCE: u64 = 3001;

/// Confirms that are waited for at a time.
const WINDOW: usize = 2000;

/// What kind of payments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Ids that count up, as a shop's do; users at random.
    Clean,
    /// Ids at random, as UUIDs are.
    RandomIds,
    /// Every other message is a copy of one that came earlier, mostly in another batch.
    HalfDuplicates,
    /// One message in a hundred is malformed.
    Malformed,
    /// All of them one user's.
    OneUser,
}

/// So many messages of a kind.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Load {
    pub kind: Kind,
    pub messages: u64,
    /// Where its payments begin: another number is other payments.
    pub from: u64,
}

/// Spreads numbers: neighbours come out far apart, no two the same (the finaliser of `SplitMix64`).
fn scattered(number: u64) -> u64 {
    let mut z = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Load {
    const FIRST: u64 = 202_002_200_000_000_000;

    /// The bodies, in the order in which they are published.
    pub fn bodies(self) -> impl Iterator<Item = Vec<u8>> + Send {
        (0..self.messages).map(move |index| self.body(index))
    }

    fn body(self, index: u64) -> Vec<u8> {
        let number = self.from
            + match self.kind {
                Kind::HalfDuplicates if index % 2 == 1 => index.saturating_sub(COPY_DISTANCE) / 2 * 2,
                _ => index,
            };
        let user = match self.kind {
            Kind::OneUser => 1,
            _ => scattered(number) % USERS,
        };
        let points = match self.kind {
            Kind::Malformed if index % 100 == 50 => 0,
            _ => 1 + number % 500,
        };
        let payment = if self.kind == Kind::RandomIds {
            format!(r#""{:016x}{:016x}""#, scattered(number), scattered(!number))
        } else {
            (Self::FIRST + number).to_string()
        };
        format!(r#"{{"paymentId":{payment},"userId":"user-{user}","integral":{points}}}"#).into_bytes()
    }

    /// The id of a payment of the clean kind.
    pub fn payment(self, index: u64) -> u64 {
        Self::FIRST + self.from + index
    }

    /// Different payments among them that can be credited.
    pub fn credits(self) -> u64 {
        match self.kind {
            Kind::HalfDuplicates => self.messages.div_ceil(2),
            Kind::Malformed => self.messages - (self.messages + 49) / 100,
            Kind::Clean | Kind::RandomIds | Kind::OneUser => self.messages,
        }
    }
}

/// The checks of a load's payments, so many in a message.
pub fn check_messages(load: Load, together: usize) -> impl Iterator<Item = Vec<u8>> + Send {
    let credits: Vec<serde_json::Value> = load
        .bodies()
        .map(|body| {
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            serde_json::json!({
                "payment_id": body["paymentId"].to_string(), "user_id": body["userId"], "points": body["integral"],
            })
        })
        .collect();
    let message =
        |checks: &[serde_json::Value]| serde_json::json!({"version": 1, "checks": checks}).to_string().into_bytes();
    credits.chunks(together).map(message).collect::<Vec<_>>().into_iter()
}

async fn confirming_channel(url: &str) -> (Connection, Channel) {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions { nowait: false }).await.unwrap();
    (connection, channel)
}

/// Publishes everything, confirmed, as fast as it goes.
pub async fn publish(url: &str, exchange: &str, key: &str, bodies: impl Iterator<Item = Vec<u8>>) {
    publish_with(url, exchange, key, bodies, BasicProperties::default()).await;
}

/// The same for check messages.
pub async fn publish_checks(url: &str, queue: &str, bodies: impl Iterator<Item = Vec<u8>>) {
    let properties = BasicProperties::default().with_content_type(CHECKS.into());
    publish_with(url, "", queue, bodies, properties).await;
}

async fn publish_with(
    url: &str,
    exchange: &str,
    key: &str,
    bodies: impl Iterator<Item = Vec<u8>>,
    properties: BasicProperties,
) {
    let (connection, channel) = confirming_channel(url).await;
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let persistent = properties.with_delivery_mode(2);
    let mut open = VecDeque::new();
    for body in bodies {
        if open.len() == WINDOW {
            // Room for many at once: a confirm covers many, too.
            for confirm in open.drain(..WINDOW / 2) {
                confirmed(confirm).await;
            }
        }
        let sent = channel.basic_publish(exchange.into(), key.into(), options, &body, persistent.clone());
        open.push_back(sent.await.unwrap());
    }
    for confirm in open {
        confirmed(confirm).await;
    }
    connection.close(200, "done".into()).await.unwrap();
}

async fn confirmed(confirm: lapin::PublisherConfirm) {
    let confirmation = confirm.await.unwrap();
    assert!(confirmation.is_ack() && confirmation.take_message().is_none(), "routed and confirmed");
}

/// Publishes at a steady pace; answers when each was handed over.
pub async fn publish_paced(
    url: &str,
    exchange: &str,
    key: &str,
    bodies: impl Iterator<Item = Vec<u8>>,
    a_second: u32,
) -> Vec<SystemTime> {
    let (connection, channel) = confirming_channel(url).await;
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let persistent = BasicProperties::default().with_delivery_mode(2);
    let (mut sent, mut confirms) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    let pace = Duration::from_secs(1) / a_second;
    for (number, body) in (0_u32..).zip(bodies) {
        // A timer's turn is a millisecond: what is late by that is not counted as waiting.
        tokio::time::sleep_until((begun + pace * number).into()).await;
        sent.push(SystemTime::now());
        let publish = channel.basic_publish(exchange.into(), key.into(), options, &body, persistent.clone());
        confirms.push(publish.await.unwrap());
    }
    for confirm in confirms {
        confirmed(confirm).await;
    }
    connection.close(200, "done".into()).await.unwrap();
    sent
}
