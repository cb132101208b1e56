//! Integration tests: the real daemon against a real RabbitMQ, PostgreSQL and SQLite, which the tests start themselves.

#![allow(missing_docs, unreachable_pub, reason = "nobody but these tests uses them")]

mod support;

mod conformance;
mod crediting;
mod recovery;
