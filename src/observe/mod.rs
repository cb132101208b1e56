//! What operators see: every metric's name ([`metrics`]), every event ([`events`]), the daemon's state ([`status`]),
//! whether its loops turn ([`heartbeat`]), what systemd is told ([`systemd`]), and the log ([`logging`], [`limit`]).

pub mod events;
pub mod heartbeat;
pub mod limit;
pub mod metrics;
pub mod settings;
pub mod status;
pub mod systemd;
