//! Observability: the definitions of the metrics ([`metrics`]), the events with their log lines ([`events`]), the spans of
//! batches ([`spans`]), the state of the daemon ([`status`]), the heartbeats of its tasks ([`heartbeat`]), notifications to
//! systemd ([`systemd`]), and the limits of log lines ([`limit`]).

pub mod events;
pub mod heartbeat;
pub mod limit;
pub mod metrics;
pub mod settings;
pub mod spans;
pub mod status;
pub mod systemd;
