//! The brake: many reversals in a row, without a paid payment between them, look like a wrong table, URL or value list
//! rather than like many unpaid payments (`compensation.brake_after`).

use super::check::{CheckStep, Resolution};

/// Counts reversals in a row.
#[derive(Debug)]
pub struct Brake {
    after: u32,
    in_a_row: u32,
}

impl Brake {
    /// Engages after so many reversals: at least 1.
    pub fn new(after: u32) -> Self {
        Self { after: after.max(1), in_a_row: 0 }
    }

    /// How many of these may be done, in this order, so that the limit is not passed even if each that is not paid is
    /// reversed. At least one as long as the brake is not engaged.
    pub fn room(&self, resolutions: impl Iterator<Item = Resolution>) -> usize {
        let (mut in_a_row, mut room) = (self.in_a_row, 0);
        for resolution in resolutions {
            if resolution == Resolution::Paid {
                in_a_row = 0;
            } else if resolution.may_reverse() {
                in_a_row += 1;
            }
            room += 1;
            // What comes after that is looked at again when it is known how many of these were reversed.
            if in_a_row >= self.after {
                break;
            }
        }
        room
    }

    /// What was done.
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

    /// Whether nothing more may be reversed. It stays so until it is released.
    pub fn is_engaged(&self) -> bool {
        self.in_a_row >= self.after
    }

    /// The limit.
    pub fn after(&self) -> u32 {
        self.after
    }

    /// A person has looked at it. Whether it was engaged; when it was not, its count stays.
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
        assert_eq!(brake.room([Closed, Closed].into_iter()), 1, "what reversed nothing does not count");
        assert_eq!(brake.room([Closed, Paid, Closed, Closed].into_iter()), 1, "not past the point where it may engage");
        brake.count(Paid, CheckStep::Verify);
        assert_eq!(brake.room([Closed; 5].into_iter()), 3, "a paid one begins the count anew");
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
