//! `pointsd` credits loyalty points from RabbitMQ payment messages, once per payment.
//!
//! `ARCHITECTURE.md` is the map; start reading at [`pipeline::credit`].

pub mod app;
pub mod broker;
pub mod cli;
pub mod config;
pub mod database;
pub mod domain;
pub mod files;
pub mod ledger;
pub mod message_file;
pub mod observe;
pub mod parked;
pub mod pauses;
pub mod pay_status;
pub mod pipeline;
pub mod relay;
pub mod unpoisoned;
