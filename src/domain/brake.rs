//! The brake on reversals (`compensation.brake_after`). Many reversals in a row, without a paid payment between them,
//! indicate a wrong table, URL or list of values rather than many unpaid payments.

use super::check::{CheckStep, Resolution};

/// Counts reversals in a row, and engages at a limit.
#[derive(Debug)]
pub struct Brake {
    after: u32,
    in_a_row: u32,
}

impl Brake {
    /// Creates a brake that engages after `after` reversals in a row, at least 1.
    pub fn new(after: u32) -> Self {
        Self { after: after.max(1), in_a_row: 0 }
    }

    /// Returns how many of these resolutions may be applied, in this order, without exceeding the limit even if every
    /// payment that is not paid is reversed. At least 1 while the brake is not engaged.
    pub fn room(&self, resolutions: impl Iterator<Item = Resolution>) -> usize {
        let (mut in_a_row, mut room) = (self.in_a_row, 0);
        for resolution in resolutions {
            if resolution == Resolution::Paid {
                in_a_row = 0;
            } else if resolution.may_reverse() {
                in_a_row += 1;
            }
            room += 1;
            // The resolutions after this one are considered again when the number of reversals is known.
            if in_a_row >= self.after {
                break;
            }
        }
        room
    }

    /// Counts the step that was applied for a resolution.
    pub fn count(&mut self, resolution: Resolution, step: CheckStep) {
        if self.is_engaged() {
            return;
        }
        if resolution == Resolution::Paid {
            self.in_a_row = 0;
        } else if resolution.may_reverse() {
            self.in_a_row += u32::from(step.is_reversal());
        }
    }

    /// Returns whether the brake forbids further reversals. An engaged brake stays engaged until it is released.
    pub fn is_engaged(&self) -> bool {
        self.in_a_row >= self.after
    }

    /// Returns the number of reversals in a row at which the brake engages.
    pub fn after(&self) -> u32 {
        self.after
    }

    /// Releases the brake after a person has found the cause. Returns whether it was engaged; otherwise its count is
    /// unchanged.
    pub fn release(&mut self) -> bool {
        let engaged = self.is_engaged();
        if engaged {
            self.in_a_row = 0;
        }
        engaged
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Resolution::{Closed, Paid, Pending as Expired};

    #[test]
    fn the_limit_is_kept_whatever_comes_in_whatever_parts() {
        let mut brake = Brake::new(3);
        assert_eq!(brake.room([Closed, Expired, Closed, Closed].into_iter()), 3);
        assert_eq!(brake.room([Closed, Closed, Paid, Closed, Closed, Closed, Closed].into_iter()), 6);
        brake.count(Closed, CheckStep::Reverse);
        brake.count(Expired, CheckStep::None);
        brake.count(Expired, CheckStep::Void);
        assert_eq!(brake.room([Closed, Closed].into_iter()), 1, "a step without a reversal is not counted");
        assert_eq!(brake.room([Closed, Paid, Closed, Closed].into_iter()), 1, "not past the point where it may engage");
        brake.count(Paid, CheckStep::Verify);
        assert_eq!(brake.room([Closed; 5].into_iter()), 3, "a paid payment resets the count");
        for _ in 0..3 {
            assert!(!brake.is_engaged());
            brake.count(Closed, CheckStep::Reverse);
        }
        brake.count(Paid, CheckStep::Verify);
        assert!(brake.is_engaged(), "only a person releases it");
        assert!(brake.release() && !brake.is_engaged() && !brake.release());
        assert_eq!(brake.room([Closed; 5].into_iter()), 3);
    }
}
