//! A message's way: parse, commit, schedule, forward, settle ([`credit`]); a check's way: parse, look up, apply, forward,
//! settle ([`check`]); what they share ([`stages`], [`confirm`], [`locked`]), and what they need of the world ([`ports`]).

pub mod check;
mod confirm;
pub mod credit;
pub mod locked;
pub mod ports;
pub mod settings;
pub mod stages;
