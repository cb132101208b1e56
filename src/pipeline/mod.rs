//! A message's way: parse, commit, forward, settle ([`credit`]), and what that way needs of the world ([`ports`]).

pub mod credit;
pub mod ports;
