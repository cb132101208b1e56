//! Acknowledgements of prefixes: [`AckTracker`] combines deliveries that finish in any order into few acknowledgements
//! of whole prefixes (`basic.ack` with `multiple`), and never acknowledges an unsettled delivery.

use std::collections::VecDeque;

/// The right to settle one delivery once: settling or requeuing the delivery consumes it.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a token that is dropped leaves its delivery unsettled until the channel closes"]
pub struct Token {
    epoch: u64,
    tag: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Open,
    Settled,
    /// Requeued by its own tag: a later prefix may include it.
    Gone,
}

/// The deliveries of one consumer's channel between arrival and acknowledgement.
///
/// Delivery tags count from 1 on every channel, so a tag means nothing without its channel: each
/// [`AckTracker::channel_opened`] begins an epoch, and tokens of an earlier one are ignored.
#[derive(Debug, Default)]
pub struct AckTracker {
    epoch: u64,
    /// The delivery tag of the first slot.
    first: u64,
    slots: VecDeque<Slot>,
    open: usize,
}

impl AckTracker {
    /// Discards all deliveries of the previous channel: the broker requeues those that are unsettled.
    pub fn channel_opened(&mut self) {
        self.epoch += 1;
        self.first = 1;
        self.slots.clear();
        self.open = 0;
    }

    /// Registers a delivery. Tags count up by one on a channel (AMQP 0-9-1, delivery-tag). Returns `None` for any other
    /// tag: its acknowledgement would have an unknown effect, so the channel must be closed.
    pub fn delivered(&mut self, tag: u64) -> Option<Token> {
        let next = self.first + self.slots.len() as u64;
        if tag != next {
            return None;
        }
        self.slots.push_back(Slot::Open);
        self.open += 1;
        Some(Token { epoch: self.epoch, tag })
    }

    /// Marks a delivery as settled: its effect is durable.
    pub fn settle(&mut self, token: Token) {
        self.close(token, Slot::Settled);
    }

    /// Gives a delivery back to its queue. Returns the tag to requeue (one at a time, never with `multiple`), or `None`
    /// when its channel is closed and the broker has requeued the delivery already.
    pub fn give_back(&mut self, token: Token) -> Option<u64> {
        self.close(token, Slot::Gone)
    }

    #[expect(clippy::needless_pass_by_value, reason = "settling consumes the token")]
    fn close(&mut self, token: Token, to: Slot) -> Option<u64> {
        let Token { epoch, tag } = token;
        if epoch != self.epoch {
            return None;
        }
        let index = usize::try_from(tag.checked_sub(self.first)?).ok()?;
        let slot = self.slots.get_mut(index).filter(|slot| **slot == Slot::Open)?;
        *slot = to;
        self.open -= 1;
        Some(tag)
    }

    /// Returns the tag up to which all deliveries are settled, if it has risen: acknowledge it with `multiple`.
    ///
    /// Each tag is returned once, in rising order, so the acknowledgements must be sent in the order of these calls.
    pub fn settled_prefix(&mut self) -> Option<u64> {
        let mut last_settled = None;
        while let Some(slot) = self.slots.front() {
            match slot {
                Slot::Open => break,
                Slot::Settled => last_settled = Some(self.first),
                Slot::Gone => {}
            }
            self.slots.pop_front();
            self.first += 1;
        }
        last_settled
    }

    /// Returns the tag of the oldest delivery that is neither settled nor given back.
    pub fn oldest_open(&self) -> Option<u64> {
        let index = self.slots.iter().position(|slot| *slot == Slot::Open)?;
        Some(self.first + index as u64)
    }

    /// Returns the number of deliveries that are neither settled nor given back.
    pub fn in_flight(&self) -> usize {
        self.open
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_prefix_is_acknowledged_once_and_never_past_an_open_delivery() {
        let mut tracker = AckTracker::default();
        tracker.channel_opened();
        let mut tokens: Vec<_> = (1..=4).map(|tag| tracker.delivered(tag)).collect();
        let mut take = |tag: usize| tokens[tag - 1].take().unwrap();
        tracker.settle(take(2));
        assert_eq!(tracker.settled_prefix(), None, "1 is open");
        assert_eq!(tracker.oldest_open(), Some(1));
        tracker.settle(take(1));
        assert_eq!(tracker.settled_prefix(), Some(2));
        assert_eq!(tracker.oldest_open(), Some(3));
        assert_eq!(tracker.settled_prefix(), None, "returned once");
        assert_eq!(tracker.give_back(take(3)), Some(3));
        assert_eq!(tracker.settled_prefix(), None, "a delivery that was given back is not acknowledged");
        tracker.settle(take(4));
        assert_eq!(tracker.settled_prefix(), Some(4), "the prefix includes a delivery that was given back");
        assert_eq!(tracker.oldest_open(), None);
        assert_eq!(tracker.in_flight(), 0);
    }

    #[test]
    fn tokens_of_a_lost_channel_settle_nothing() {
        let mut tracker = AckTracker::default();
        tracker.channel_opened();
        let (old_settled, old_returned) = (tracker.delivered(1).unwrap(), tracker.delivered(2).unwrap());
        tracker.channel_opened();
        let new = tracker.delivered(1).unwrap();
        tracker.settle(old_settled);
        assert_eq!(tracker.give_back(old_returned), None);
        assert_eq!(tracker.settled_prefix(), None);
        assert_eq!(tracker.in_flight(), 1);
        tracker.settle(new);
        assert_eq!(tracker.settled_prefix(), Some(1));
    }

    #[test]
    fn a_tag_that_does_not_count_up_by_one_is_no_delivery() {
        let mut tracker = AckTracker::default();
        tracker.channel_opened();
        assert_eq!(tracker.delivered(2), None, "1 is skipped");
        let first = tracker.delivered(1).unwrap();
        assert_eq!(tracker.delivered(1), None, "a repeated tag");
        tracker.settle(first);
        assert_eq!(tracker.settled_prefix(), Some(1));
        assert_eq!(tracker.delivered(1), None, "a tag that was settled before");
        assert_eq!(tracker.in_flight(), 0);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Deliver,
        Skip(u64),
        Settle(prop::sample::Index),
        GiveBack(prop::sample::Index),
        Acknowledge,
        ChannelLost,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => Just(Step::Deliver),
            1 => (0..1000_u64).prop_map(Step::Skip),
            4 => any::<prop::sample::Index>().prop_map(Step::Settle),
            1 => any::<prop::sample::Index>().prop_map(Step::GiveBack),
            3 => Just(Step::Acknowledge),
            1 => Just(Step::ChannelLost),
        ]
    }

    proptest! {
        /// Compares with a model of plain sets: in any order, an acknowledgement covers only settled or given-back
        /// deliveries of the current channel, every settled delivery is covered in the end, and tags only rise.
        #[test]
        fn acknowledgements_cover_exactly_what_is_settled(steps in prop::collection::vec(step(), 0..200)) {
            let mut tracker = AckTracker::default();
            tracker.channel_opened();
            let (mut next_tag, mut epoch, mut acked_up_to) = (1_u64, 1_u64, 0_u64);
            let mut held: Vec<(u64, Token)> = Vec::new();
            let mut open: BTreeSet<u64> = BTreeSet::new();
            let mut settled: BTreeSet<u64> = BTreeSet::new();
            let acknowledge = |tracker: &mut AckTracker, open: &BTreeSet<u64>, settled: &mut BTreeSet<u64>, acked: &mut u64| {
                let prefix = tracker.settled_prefix();
                if let Some(tag) = prefix {
                    assert!(tag > *acked, "tags rise");
                    assert!(open.range(..=tag).next().is_none(), "an open delivery was acknowledged");
                    assert!(settled.contains(&tag), "the acknowledged tag itself is not settled");
                    settled.retain(|settled| *settled > tag);
                    *acked = tag;
                }
                let first_open = open.first().copied().unwrap_or(u64::MAX);
                assert!(settled.range(..first_open).next().is_none(), "a settled prefix was not acknowledged");
            };
            for step in steps {
                match step {
                    Step::Deliver => {
                        held.push((epoch, tracker.delivered(next_tag).unwrap()));
                        open.insert(next_tag);
                        next_tag += 1;
                    }
                    Step::Skip(tag) => prop_assert!(tag == next_tag || tracker.delivered(tag).is_none()),
                    Step::Settle(index) | Step::GiveBack(index) if held.is_empty() => { let _ = index; }
                    Step::Settle(index) => {
                        let (of, token) = held.swap_remove(index.index(held.len()));
                        if of == epoch {
                            open.remove(&token.tag);
                            settled.insert(token.tag);
                        }
                        tracker.settle(token);
                    }
                    Step::GiveBack(index) => {
                        let (of, token) = held.swap_remove(index.index(held.len()));
                        let tag = token.tag;
                        let requeue = tracker.give_back(token);
                        prop_assert_eq!(requeue, (of == epoch).then_some(tag));
                        if of == epoch {
                            open.remove(&tag);
                        }
                    }
                    Step::Acknowledge => acknowledge(&mut tracker, &open, &mut settled, &mut acked_up_to),
                    Step::ChannelLost => {
                        tracker.channel_opened();
                        epoch += 1;
                        next_tag = 1;
                        acked_up_to = 0;
                        open.clear();
                        settled.clear();
                    }
                }
                prop_assert_eq!(tracker.in_flight(), open.len());
            }
            acknowledge(&mut tracker, &open, &mut settled, &mut acked_up_to);
        }
    }
}
