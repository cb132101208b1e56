//! One request of a look-up: what is requested, how it ended, and the order of requests.

use super::{HttpSource, LookupError};
use crate::{domain::ids::PaymentId, pipeline::ports::Payment};
use std::{
    hash::{BuildHasher, RandomState},
    time::Instant,
};

/// A request to the gateway.
pub(super) enum Request {
    Payment { index: usize, id: PaymentId, refusals: u32, is_compared: bool },
    Reference(PaymentId),
}

/// A payment that was refused.
pub(super) struct Refused {
    pub(super) index: usize,
    /// The number of refusals while others were answered.
    pub(super) count: u32,
    pub(super) again_at: Instant,
    /// Whether another payment was requested, and answered, immediately before.
    pub(super) is_compared: bool,
}

/// A request that has ended.
pub(super) struct Ended {
    pub(super) request: Request,
    pub(super) begun: Instant,
    pub(super) answer: Result<Payment, LookupError>,
}

pub(super) async fn send_request(source: &HttpSource, request: Request) -> Ended {
    let begun = Instant::now();
    let (Request::Payment { id, .. } | Request::Reference(id)) = &request;
    let answer = source.ask(id.as_str()).await;
    Ended { request, begun, answer }
}

/// Shuffles the indices (Fisher and Yates).
pub(super) fn shuffle(indices: &mut [usize]) {
    // The standard library chooses random keys.
    let random = RandomState::new();
    for last in (1..indices.len()).rev() {
        let other = usize::try_from(random.hash_one(last) % (last as u64 + 1)).unwrap_or(last);
        indices.swap(last, other);
    }
}
