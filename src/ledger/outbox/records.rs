//! What stands in the outbox, and what becomes of it.

use diesel::sql_types::{BigInt, Binary, Double, Integer, Nullable, Text};
use serde::Serialize;
use std::time::Duration;

/// A row that is to be published.
#[derive(Debug, Clone, PartialEq, diesel::QueryableByName)]
pub struct Row {
    /// Its place in the order.
    #[diesel(sql_type = BigInt)]
    pub id: i64,
    /// By which a listener knows it again.
    #[diesel(sql_type = Text)]
    pub message_id: String,
    /// Where it goes.
    #[diesel(sql_type = Text)]
    pub exchange: String,
    /// With which key.
    #[diesel(sql_type = Text)]
    pub routing_key: String,
    /// Rows of one key stay in order. `None`: it waits for no other.
    #[diesel(sql_type = Nullable<Text>)]
    pub key: Option<String>,
    /// A JSON object.
    #[diesel(sql_type = Text)]
    pub headers: String,
    /// As it is sent.
    #[diesel(sql_type = Binary)]
    pub body: Vec<u8>,
    /// How often it could not be delivered.
    #[diesel(sql_type = Integer)]
    pub attempts: i32,
    /// The held row of its key that stands next before it, which it must not overtake.
    #[diesel(sql_type = Nullable<BigInt>)]
    pub behind_id: Option<i64>,
    /// In how many seconds that one is tried again.
    #[diesel(sql_type = Nullable<Double>)]
    pub behind_seconds: Option<f64>,
    /// Why it cannot be published, if its text is none.
    #[diesel(sql_type = Nullable<Text>)]
    pub problem: Option<String>,
}

/// A row that is not delivered now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Which.
    pub id: i64,
    /// What the broker said; `None` when it only waits for an earlier one of its key.
    pub error: Option<String>,
    /// When it is tried again.
    pub again_in: Duration,
}

/// How full the outbox is.
#[derive(Debug, Clone, PartialEq, Serialize, diesel::QueryableByName)]
pub struct Summary {
    /// Rows, counted up to a million.
    #[diesel(sql_type = BigInt)]
    pub rows: i64,
    /// Those among them that are held, the same.
    #[diesel(sql_type = BigInt)]
    pub held: i64,
    /// The age of the first one.
    #[diesel(sql_type = Nullable<Double>)]
    pub oldest_seconds: Option<f64>,
}

/// A row as a person sees it: never its body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, diesel::QueryableByName)]
pub struct Listed {
    /// Its place in the order.
    #[diesel(sql_type = BigInt)]
    pub id: i64,
    /// By which a listener knows it again.
    #[diesel(sql_type = Text)]
    pub message_id: String,
    /// Where it goes.
    #[diesel(sql_type = Text)]
    pub exchange: String,
    /// With which key.
    #[diesel(sql_type = Text)]
    pub routing_key: String,
    /// Rows of one key stay in order.
    #[diesel(sql_type = Nullable<Text>)]
    pub key: Option<String>,
    /// How long its body is.
    #[diesel(sql_type = Integer)]
    pub body_bytes: i32,
    /// How often it could not be delivered.
    #[diesel(sql_type = Integer)]
    pub attempts: i32,
    /// What the broker said last.
    #[diesel(sql_type = Nullable<Text>)]
    pub last_error: Option<String>,
    /// RFC 3339.
    #[diesel(sql_type = Text)]
    pub created_at: String,
    /// When it is tried again; `None` for one that was not tried yet.
    #[diesel(sql_type = Nullable<Text>)]
    pub next_try_at: Option<String>,
}
