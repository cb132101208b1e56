//! The names of the headers of pointsd, and the groups of headers that copies treat alike
//! (`docs/reference/headers.md`).

/// The prefix of the names of pointsd's own headers.
pub(super) const OUR_PREFIX: &str = "x-pointsd-";

pub(super) const ATTEMPT: &str = "x-pointsd-attempt";
pub(super) const CHECK: &str = "x-pointsd-check";
pub(super) const SOURCE: &str = "x-pointsd-source";
pub(super) const SOURCE_QUEUE: &str = "x-pointsd-source-queue";
pub(super) const REASON: &str = "x-pointsd-reason";
pub(super) const ERROR: &str = "x-pointsd-error";
pub(super) const FIRST_FAILED_AT: &str = "x-pointsd-first-failed-at";
pub(super) const LEDGER_USER: &str = "x-pointsd-ledger-user";
pub(super) const LEDGER_POINTS: &str = "x-pointsd-ledger-points";
pub(super) const REQUEUE_ID: &str = "x-pointsd-requeue-id";
pub(super) const TRUNCATED: &str = "x-pointsd-truncated";
/// The dead-queue session that replaced a dead letter by this copy.
pub(super) const LOOK: &str = "x-pointsd-look";
/// The raw properties of an unreadable message: bytes between the socket and the consumer, hexadecimal digits on a
/// parked copy.
pub(super) const RAW: &str = "x-pointsd-raw-properties";

/// Own headers that every copy keeps, also where foreign headers do not fit.
pub(super) const CARRIED: [&str; 5] = [ATTEMPT, CHECK, FIRST_FAILED_AT, REQUEUE_ID, TRUNCATED];

/// Whether the broker interprets a header: a copy with `x-death` may be dropped as a cycle, and `CC` and `BCC` route it
/// a second time.
pub(super) fn is_broker_header(name: &str) -> bool {
    matches!(name, "x-death" | "x-delivery-count" | "x-acquired-count" | "CC" | "BCC")
        || name.starts_with("x-first-death-")
        || name.starts_with("x-last-death-")
}

/// Whether a header describes a failure and is removed from a message that starts again. [`SOURCE`] (the format of the
/// body) and [`REQUEUE_ID`] (the run that sent the message) are kept.
pub(super) fn describes_failure(name: &str) -> bool {
    belongs_to_one_stay(name) || matches!(name, ATTEMPT | CHECK | FIRST_FAILED_AT | TRUNCATED)
}

/// Whether an own header describes a single stay in a queue and is outdated in the next one.
pub(super) fn belongs_to_one_stay(name: &str) -> bool {
    matches!(name, SOURCE_QUEUE | REASON | ERROR | LEDGER_USER | LEDGER_POINTS | RAW | LOOK)
}
