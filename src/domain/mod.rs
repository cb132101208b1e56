//! The decisions, as pure functions and types: no I/O, no clock, no async, no database, no broker (`tests/tidy.rs`
//! enforces this).

pub mod ack_tracker;
mod bare_id;
pub mod brake;
pub mod check;
pub mod check_message;
pub mod check_outcome;
pub mod check_schedule;
pub mod component;
pub mod credit;
pub mod dead_letter;
pub mod event;
pub mod failure;
pub mod field_paths;
pub mod id_rule;
pub mod ids;
mod java;
pub mod malformed;
pub mod message;
pub mod notification;
pub mod notification_source;
pub mod outcome;
pub mod printable;
pub mod retry;
pub mod settlement;
pub mod status;
pub mod valuation;
