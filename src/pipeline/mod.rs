//! A message's way: parse, commit, schedule, forward, settle ([`credit`]); a check's way: parse, look up, apply, forward,
//! settle ([`check`]); what they share ([`stages`], [`confirm`], [`locked`]), and what they need of the world ([`ports`]).

pub mod batch;
pub mod check;
pub mod credit;
mod forward;
mod lock_search;
pub mod locked_rows;
pub mod ports;
pub mod settings;
pub mod work;
