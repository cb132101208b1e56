//! `[compensation]`: the schedule of checks, the treatment of unpaid credits, and the brake.

use super::keywords::UnpaidWord;
use crate::{
    config::{
        common::{DELAY, delays, number},
        reader::Reader,
    },
    domain::{check::OnUnpaid, check_schedule::CheckPolicy, retry::Delay},
    pipeline::settings::CompensationSettings,
};

/// Reads the section.
pub(super) fn compensation(reader: &mut Reader) -> CompensationSettings {
    let wanted = format!("{DELAY}, as in \"30s\"");
    let first =
        reader.checked("compensation.first", "30s".to_owned(), &wanted, |text: &String| Delay::parse(text).is_some());
    let delays = delays(reader, "compensation.delays", &["1m", "5m", "30m", "2h", "12h"]);
    let on_unpaid = match reader.setting("compensation.on_unpaid", UnpaidWord::Reverse) {
        UnpaidWord::Reverse => OnUnpaid::Reverse,
        UnpaidWord::Dead => OnUnpaid::Dead,
    };
    let brake_after = number(reader, "compensation.brake_after", 500, 1..=1_000_000);
    // The default and every value that the rule accepts are delays.
    let policy = Delay::parse(&first).map(|first| CheckPolicy::new(first, delays, on_unpaid));
    CompensationSettings { policy: policy.unwrap_or_default(), brake_after }
}
