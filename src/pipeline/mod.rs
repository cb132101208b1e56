//! A message's way: parse, commit, forward, settle ([`credit`]); a check's way: parse, look up, act, forward, settle
//! ([`check`]); what they share ([`stages`]), and what they need of the world ([`ports`]).

mod asked;
pub mod brake;
pub mod check;
pub mod credit;
pub mod ports;
mod rows;
pub mod stages;
