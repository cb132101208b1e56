//! pointsd consumes payment messages from RabbitMQ and credits loyalty points to a SQL ledger: one credit per payment.
//!
//! Delivery is at-least-once; crediting is effectively-once, because the payment id is the primary key of the ledger.
//!
//! # Where to start
//!
//! - [`pipeline::credit`] is the path of a points message: parse, commit, schedule checks, forward, settle.
//! - [`pipeline::check`] is the path of a check: parse, look up the payment, apply, forward, settle.
//! - [`domain`] holds every decision as pure functions: [`domain::outcome`] is the table of outcomes, [`domain::check`] the
//!   table of checks, [`domain::failure`] the error classes.
//! - [`pipeline::ports`] has the traits that [`ledger`], [`pay_status`] and [`broker`] implement.
//! - [`app`] runs sessions, workers and recovery; [`cli`] parses commands and prints.
//!
//! `ARCHITECTURE.md` shows which module may name which, `docs/glossary.md` defines the terms.

pub mod app;
pub mod broker;
pub mod cli;
pub mod config;
pub mod database;
pub mod dead_letters;
pub mod domain;
pub mod files;
pub mod ledger;
pub mod message_file;
pub mod observe;
pub mod pauses;
pub mod pay_status;
pub mod pipeline;
pub mod relay;
pub mod unpoisoned;
