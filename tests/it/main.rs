//! Integration tests: the real daemon against a real RabbitMQ, PostgreSQL and SQLite, which the tests start themselves.

#![allow(missing_docs, unreachable_pub, reason = "nobody but these tests uses them")]
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    clippy::expect_used,
    clippy::panic,
    clippy::float_cmp,
    clippy::cast_precision_loss,
    clippy::print_stderr,
    clippy::type_complexity,
    clippy::ref_option,
    clippy::unnecessary_wraps,
    clippy::items_after_statements,
    reason = "a test fails by panicking and says what it measured, a count is exact, a table of cases is read where it stands"
)]

mod support;

mod brake;
mod check_chaos;
mod check_messages;
mod cli;
mod compensation;
mod conformance;
mod crediting;
mod dead;
mod expiry;
mod failures;
mod identity;
mod locked_rows;
mod notifications;
mod operations;
mod outages;
mod outbox;
mod payment_sources;
mod payment_sources_direct;
mod pooler;
mod recovery;
mod return_of_service;
mod rights;
mod rotation;
mod stall;
mod unreadable;
